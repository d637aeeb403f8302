//! A proxy before an S3 server that makes it slow, or fail in the ways in which stores fail.
//!
//! HTTP/1.1 on loopback, one thread a connection, one connection to the server for each. Faults happen to
//! reads of objects only, at rates given in per cent, by a seed. Conditional puts go one at a time, since
//! the servers used in tests are not all atomic. Prints `listening PORT`; then takes commands on standard
//! input, a line each: `set NAME VALUE` and `stats` (which prints one line of JSON). Ends with its input.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;

const PIECE_BYTES: usize = 128 * 1024;
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A slow, faulty store.
#[derive(Parser)]
#[command(name = "store-proxy")]
struct Args {
    /// The real server
    #[arg(long)]
    upstream: SocketAddr,
    /// Time added to each request
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Of answers on one connection; 0: no limit
    #[arg(long, default_value_t = 0)]
    connection_bytes_per_second: u64,
    /// For the faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What can happen to a read, in the order in which it is drawn.
const FAULTS: [&str; 6] = ["unavailable", "reset", "stall", "truncated", "flipped", "whole"];

struct Settings {
    latency_ms: AtomicU64,
    connection_bytes_per_second: AtomicU64,
    /// A stalled answer goes on (to end the connection) after this long.
    stall_ms: AtomicU64,
    /// Requests wait while it is 1.
    hang: AtomicU64,
    percent: [AtomicU64; FAULTS.len()],
}

#[derive(Default)]
struct Stats {
    get: AtomicU64,
    put: AtomicU64,
    other: AtomicU64,
    bytes_down: AtomicU64,
    faults: [AtomicU64; FAULTS.len()],
}

struct Proxy {
    upstream: SocketAddr,
    settings: Settings,
    stats: Stats,
    random: Mutex<u64>,
    conditional: Mutex<()>,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let proxy = Arc::new(Proxy {
        upstream: args.upstream,
        settings: Settings {
            latency_ms: args.latency_ms.into(),
            connection_bytes_per_second: args.connection_bytes_per_second.into(),
            stall_ms: 60_000.into(),
            hang: 0.into(),
            percent: Default::default(),
        },
        stats: Stats::default(),
        random: Mutex::new(args.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        conditional: Mutex::new(()),
    });
    println!("listening {}", listener.local_addr()?.port());
    let accepting = Arc::clone(&proxy);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let proxy = Arc::clone(&accepting);
            // A connection that breaks is the client's to notice.
            std::thread::spawn(move || drop(proxy.serve(client)));
        }
    });
    for line in io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["stats"] => println!("{}", proxy.stats.json()),
            ["set", name, value] => match value.parse() {
                Ok(value) if proxy.settings.set(name, value) => println!("ok"),
                _ => println!("error: no such setting or value: {line}"),
            },
            _ => println!("error: not a command: {line}"),
        }
    }
    Ok(())
}

impl Settings {
    fn set(&self, name: &str, value: u64) -> bool {
        let fault = FAULTS.iter().position(|fault| *fault == name);
        let place = match (name, fault) {
            ("latency_ms", _) => &self.latency_ms,
            ("connection_bytes_per_second", _) => &self.connection_bytes_per_second,
            ("stall_ms", _) => &self.stall_ms,
            ("hang", _) => &self.hang,
            (_, Some(fault)) => &self.percent[fault],
            _ => return false,
        };
        place.store(value, Ordering::SeqCst);
        true
    }
}

impl Stats {
    fn json(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let faults: serde_json::Map<String, serde_json::Value> = FAULTS
            .iter()
            .zip(&self.faults)
            .map(|(name, count)| ((*name).to_owned(), of(count).into()))
            .collect();
        serde_json::json!({
            "get": of(&self.get), "put": of(&self.put), "other": of(&self.other),
            "bytes_down": of(&self.bytes_down), "faults": faults,
        })
        .to_string()
    }
}

/// The head of a request or an answer.
struct Head {
    first: String,
    lines: Vec<String>,
}

impl Head {
    /// `None`: the connection ended.
    fn read(from: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let mut lines = Vec::new();
        let mut bytes = 0;
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            bytes += line.len();
            if bytes > HEAD_BYTES_MAX {
                return Err(io::Error::other("a head of more than 64 KiB"));
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        if lines.is_empty() {
            return Ok(None);
        }
        let first = lines.remove(0);
        Ok(Some(Self { first, lines }))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    fn chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"))
    }

    fn write(&self, to: &mut impl io::Write) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for line in &self.lines {
            text.push_str(line);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        to.write_all(text.as_bytes())
    }
}

impl Proxy {
    fn random(&self) -> u64 {
        let mut state = self.random.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    fn draw(&self, request: &Head) -> Option<usize> {
        if !(request.first.starts_with("GET ") && request.header("range").is_some()) {
            return None;
        }
        let mut point = self.random() % 100;
        let percent = self.settings.percent.iter().map(|p| p.load(Ordering::SeqCst));
        let fault = percent.enumerate().find_map(|(fault, percent)| {
            if point < percent {
                return Some(fault);
            }
            point -= percent;
            None
        })?;
        self.stats.faults[fault].fetch_add(1, Ordering::SeqCst);
        Some(fault)
    }

    fn serve(&self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let server = TcpStream::connect(self.upstream)?;
        server.set_nodelay(true)?;
        let (mut to_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        let (mut client, mut server) = (BufReader::new(client), BufReader::new(server));
        while let Some(mut request) = Head::read(&mut client)? {
            self.count(&request);
            let fault = self.draw(&request).map(|fault| FAULTS[fault]);
            let latency = self.settings.latency_ms.load(Ordering::SeqCst);
            let answered_at = Instant::now() + Duration::from_millis(latency);
            while self.settings.hang.load(Ordering::SeqCst) == 1 {
                std::thread::sleep(Duration::from_millis(20));
            }
            if fault == Some("unavailable") {
                sleep_until(answered_at);
                let body = "<Error><Code>SlowDown</Code><Message>made so</Message></Error>";
                let head = format!(
                    "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                to_client.write_all(format!("{head}{body}").as_bytes())?;
                continue;
            }
            if fault == Some("whole") {
                request.lines.retain(|l| !l.to_ascii_lowercase().starts_with("range:"));
            }
            let one_at_a_time = request.header("if-none-match").is_some().then(|| {
                self.conditional.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
            });
            request.write(&mut to_server)?;
            if request.header("expect").is_some() {
                // The client sends its body only when the server has agreed.
                let Some(head) = Head::read(&mut server)? else { return Ok(()) };
                head.write(&mut to_client)?;
                if !head.first.contains(" 100") {
                    self.body(&head, &mut server, &mut to_client)?;
                    continue;
                }
            }
            self.body(&request, &mut client, &mut to_server)?;
            let Some(head) = Head::read(&mut server)? else { return Ok(()) };
            drop(one_at_a_time);
            sleep_until(answered_at);
            head.write(&mut to_client)?;
            let bodiless = request.first.starts_with("HEAD ")
                || head.first.contains(" 204")
                || head.first.contains(" 304");
            if bodiless {
                continue;
            }
            match (fault, head.length()) {
                (Some("reset" | "stall" | "truncated"), Some(length)) => {
                    let part = self.random() % length.max(1);
                    self.copy(&mut server, &mut to_client, part, None)?;
                    return self.break_off(fault, &to_client);
                }
                (Some("flipped"), Some(length)) => {
                    let at = self.random() % length.max(1);
                    self.copy(&mut server, &mut to_client, length, Some(at))?;
                }
                _ => self.body(&head, &mut server, &mut to_client)?,
            }
            if request.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn count(&self, request: &Head) {
        let counter = match request.first.split(' ').next() {
            Some("GET") => &self.stats.get,
            Some("PUT") => &self.stats.put,
            _ => &self.stats.other,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn break_off(&self, fault: Option<&str>, client: &TcpStream) -> io::Result<()> {
        match fault {
            Some("stall") => {
                let stall_ms = self.settings.stall_ms.load(Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(stall_ms));
            }
            Some("reset") => {
                rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO))?;
                return Ok(());
            }
            _ => {}
        }
        client.shutdown(Shutdown::Both)
    }

    /// The body that `head` announces.
    fn body(
        &self,
        head: &Head,
        from: &mut BufReader<TcpStream>,
        to: &mut TcpStream,
    ) -> io::Result<()> {
        if head.chunked() {
            return copy_chunks(from, to);
        }
        self.copy(from, to, head.length().unwrap_or(0), None)
    }

    /// `length` bytes at the pace of a connection, with the byte at `flip` changed.
    fn copy(
        &self,
        from: &mut BufReader<TcpStream>,
        to: &mut TcpStream,
        length: u64,
        flip: Option<u64>,
    ) -> io::Result<()> {
        let began = Instant::now();
        let mut buffer = vec![0; PIECE_BYTES];
        let mut done = 0u64;
        while done < length {
            let wanted = (length - done).min(PIECE_BYTES as u64) as usize;
            let got = from.read(&mut buffer[..wanted])?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(at) = flip.filter(|at| (done..done + got as u64).contains(at)) {
                buffer[(at - done) as usize] ^= 0x40;
            }
            to.write_all(&buffer[..got])?;
            done += got as u64;
            self.stats.bytes_down.fetch_add(got as u64, Ordering::SeqCst);
            let rate = self.settings.connection_bytes_per_second.load(Ordering::SeqCst);
            if let Some(nanos) = (done * 1_000_000_000).checked_div(rate) {
                sleep_until(began + Duration::from_nanos(nanos));
            }
        }
        Ok(())
    }
}

fn copy_chunks(from: &mut BufReader<TcpStream>, to: &mut TcpStream) -> io::Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        to.write_all(line.as_bytes())?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
        // The chunk and its line end; after the last one an empty line.
        io::copy(&mut from.take(size + 2), to)?;
        if size == 0 {
            return Ok(());
        }
    }
}

fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}
