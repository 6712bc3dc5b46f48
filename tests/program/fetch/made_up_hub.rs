//! A hub with one repository, `o/n`, on the loopback interface: its API, its files, and on
//! another port the host that it redirects to for large ones. It can be told to misbehave.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::server::read_head;
use kvfold::fetch::FetchOptions;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// The commit that every revision is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One thing that goes wrong.
#[derive(Clone)]
pub enum Fault {
    /// This status with this header line.
    Status(u16, &'static str),
    /// This body, of this type, with status 200.
    Body(&'static str, Vec<u8>),
    /// The connection ends after so many body bytes.
    Cut(usize),
    /// The first byte is another.
    Flip,
    /// A redirect to this path of the same host.
    Moved(&'static str),
    /// The same without a byte.
    Short,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// What the API says instead, by a change of its answer.
    changes: Vec<fn(&mut Value)>,
    /// Part of the path, how often, and what.
    faults: Vec<(String, usize, Fault)>,
    requests: Vec<String>,
}

/// The hub.
pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start<N: Into<String>>(files: impl IntoIterator<Item = (N, Vec<u8>)>) -> Self {
        let files = files.into_iter().map(|(name, bytes)| (name.into(), bytes)).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let listen = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            (listener, port)
        };
        let ((hub, port), (cdn, cdn_port)) = (listen(), listen());
        for (listener, who) in [(hub, "hub"), (cdn, "cdn")] {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let state = Arc::clone(&state);
                    // A client that hangs up makes this fail, and that is fine.
                    thread::spawn(move || answer(stream.unwrap(), who, cdn_port, &state));
                }
            });
        }
        Self { endpoint: format!("http://127.0.0.1:{port}"), state }
    }

    /// Requests whose path holds `part` get this, so many times.
    pub fn fail(&self, part: &str, times: usize, fault: Fault) -> &Self {
        self.state.lock().unwrap().faults.push((part.to_owned(), times, fault));
        self
    }

    pub fn heal(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// Changes what the API says.
    pub fn say(&self, change: fn(&mut Value)) -> &Self {
        self.state.lock().unwrap().changes.push(change);
        self
    }

    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        self.state.lock().unwrap().files.insert(name.to_owned(), bytes);
    }

    /// The request heads since the last call, in lower case, each with who got it before it.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    pub fn options(&self, cache: &TempDir) -> FetchOptions {
        let mut options = FetchOptions::new(cache.path());
        options.hub_endpoint = self.endpoint.clone();
        options
    }
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(name: &str) -> bool {
    [".gguf", ".safetensors", ".bin", ".pth"].iter().any(|end| name.ends_with(end))
}

/// What the API says of the repository.
fn info(state: &State) -> Value {
    let file = |(name, bytes): (&String, &Vec<u8>)| {
        let start = Sha1::new().chain_update(format!("blob {}\0", bytes.len()));
        let mut file = json!({"rfilename": name, "size": bytes.len(),
            "blobId": hex(start.chain_update(bytes).finalize())});
        if is_large(name) {
            file["lfs"] = json!({"sha256": hex(Sha256::digest(bytes)), "size": bytes.len(),
                "pointerSize": 130});
        }
        file
    };
    let files: Vec<Value> = state.files.iter().map(file).collect();
    let mut info = json!({"id": "o/n", "modelId": "o/n", "sha": COMMIT, "private": false,
        "gated": false, "tags": ["x"], "siblings": files});
    state.changes.iter().for_each(|change| change(&mut info));
    info
}

fn unescape(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.push(u8::from_str_radix(&digits, 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn answer(
    mut stream: TcpStream,
    who: &str,
    cdn_port: u16,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let Some(head) = read_head(&stream)? else { return Ok(()) };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let range = head.to_lowercase().lines().find_map(|line| {
        let (first, last) = line.strip_prefix("range: bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()))
    });
    let (fault, body) = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{who} {}", head.to_lowercase()));
        let fault = state
            .faults
            .iter_mut()
            .find(|(part, times, _)| *times > 0 && path.contains(part.as_str()));
        let fault = fault.map(|(_, times, fault)| {
            *times -= 1;
            fault.clone()
        });
        let route = path.split('?').next().unwrap_or_default();
        let file = |name: &str| state.files.get(&unescape(name)).cloned();
        let api = route.strip_prefix("/api/models/o/n/revision/");
        let resolve = route.strip_prefix(&format!("/o/n/resolve/{COMMIT}/"));
        let body = match (who, api, resolve) {
            ("hub", Some(_), _) => Some(info(&state).to_string().into_bytes()),
            ("hub", _, Some(name)) if is_large(name) && file(name).is_some() => {
                let location = format!("http://127.0.0.1:{cdn_port}/cdn/{name}");
                let known =
                    matches!(fault, None | Some(Fault::Cut(_) | Fault::Flip | Fault::Short));
                if known {
                    let line = format!("Location: {location}");
                    return write!(
                        stream,
                        "HTTP/1.1 302 Found\r\n{line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    );
                }
                None
            }
            ("hub", _, Some(name)) => file(name),
            ("cdn", ..) => route.strip_prefix("/cdn/").and_then(file),
            _ => None,
        };
        (fault, body)
    };
    let close = "Connection: close\r\n";
    let mut kind = "application/octet-stream";
    let mut body = match (&fault, body) {
        (Some(Fault::Status(status, header)), _) => {
            let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
            return write!(
                stream,
                "HTTP/1.1 {status} X\r\n{header}{close}Content-Length: 0\r\n\r\n"
            );
        }
        (Some(Fault::Moved(to)), _) => {
            return write!(
                stream,
                "HTTP/1.1 307 X\r\nLocation: {to}\r\n{close}Content-Length: 0\r\n\r\n"
            );
        }
        (Some(Fault::Body(of, bytes)), _) => {
            kind = of;
            bytes.clone()
        }
        (_, Some(body)) => body,
        (_, None) => return write!(stream, "HTTP/1.1 404 X\r\n{close}Content-Length: 0\r\n\r\n"),
    };
    match fault {
        Some(Fault::Flip) => body[0] ^= 1,
        Some(Fault::Short) => drop(body.pop()),
        _ => {}
    }
    let total = body.len();
    let (status, range) = match range {
        Some((first, last)) if first < total => {
            let last = last.unwrap_or(total - 1).min(total - 1);
            body = body[first..=last].to_vec();
            ("206 Partial Content", format!("Content-Range: bytes {first}-{last}/{total}\r\n"))
        }
        _ => ("200 OK", String::new()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: \"v1\"\r\nContent-Type: {kind}\r\n{close}{range}Content-Length: {length}\r\n\r\n"
    )?;
    if let Some(Fault::Cut(bytes)) = fault {
        body.truncate(bytes);
    }
    stream.write_all(&body)
}
