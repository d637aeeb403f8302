//! Which objects are pinned, as the file `pins` of the cache directory has it (`docs/FORMATS.md` 3.3).
//!
//! Invariant: the file is replaced whole, synced first. One that cannot be believed is put aside under
//! another name and handed up to be said: what was pinned is then an ordinary part of the cache.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::types::{ObjectKey, envelope};

const FILE: &str = "pins";
pub const TEMPORARY: &str = "pins.tmp";
const ASIDE: &str = "pins.damaged";
const VERSION: u32 = 1;

/// Keys of pinned objects, `.log` and `.aux`, and the lengths of these.
pub type Pins = BTreeMap<String, u64>;

#[derive(Serialize, Deserialize)]
struct Body {
    objects: Pins,
}

/// What an earlier run pinned; and why that cannot be believed, if it cannot.
pub fn load(dir: &Path) -> io::Result<(Pins, Option<String>)> {
    let path = dir.join(FILE);
    let bytes = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Pins::new(), None)),
        read => read?,
    };
    match envelope::decode::<Body>("pins", VERSION, &bytes) {
        Ok(body) => Ok((body.objects, None)),
        Err(e) => {
            fs::rename(&path, dir.join(ASIDE))?;
            Ok((Pins::new(), Some(format!("{}: {e}", path.display()))))
        }
    }
}

/// Replaces the file.
pub fn save(dir: &Path, pins: &Pins) -> io::Result<()> {
    let body = Body { objects: pins.clone() };
    let bytes = envelope::encode("pins", VERSION, &body).map_err(io::Error::other)?;
    let temporary = dir.join(TEMPORARY);
    let written = (|| {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(FILE))?;
        fs::File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Bytes of all pinned objects.
pub fn bytes(pins: &Pins) -> u64 {
    pins.values().sum()
}

/// Keys as objects' keys.
pub fn keys(pins: &Pins) -> impl Iterator<Item = ObjectKey> + '_ {
    pins.keys().map(|key| ObjectKey(key.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_read_back_and_a_damaged_list_is_put_aside_and_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), (Pins::new(), None));
        let pins = Pins::from([("topics/t-0/x/1.log".to_owned(), 70_000)]);
        save(dir.path(), &pins).unwrap();
        assert_eq!(load(dir.path()).unwrap(), (pins, None));
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - 6;
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (left, why) = load(dir.path()).unwrap();
        assert!(left.is_empty() && why.unwrap().contains("damaged"));
        assert!(!path.exists() && dir.path().join(ASIDE).exists());
    }
}
