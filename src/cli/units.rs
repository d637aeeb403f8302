//! Sizes and times as people type them.

use std::time::Duration;

/// Bytes: `1048576`, `64KiB`, `10MB`, `1.5GiB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("unknown unit {unit:?}: write e.g. 1048576, 64MiB, 10GiB, 1TB")),
    };
    scaled(number, factor as f64).map(|v| v as u64)
}

/// A time: `500ms`, `25s`, `10m`, `12h`, `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("unknown unit {unit:?}: write e.g. 500ms, 25s, 10m, 12h, 7d")),
    };
    scaled(number, millis as f64).map(|v| Duration::from_millis(v as u64))
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

fn scaled(number: &str, factor: f64) -> Result<f64, String> {
    let value: f64 = number.parse().map_err(|_| format!("{number:?} is not a number"))?;
    Ok((value * factor).round())
}

/// Bytes for people: `1.5 GiB`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        assert_eq!(bytes("64KiB"), Ok(65536));
        assert_eq!(bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(bytes("10MB"), Ok(10_000_000));
        assert!(bytes("10 parsecs").is_err() && bytes("").is_err() && bytes("-1").is_err());
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("7").is_err());
    }
}
