//! A hub on the loopback interface.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use kvfold::fetch::FetchOptions;
use tempfile::TempDir;

/// What the server does with a request.
#[derive(Clone, Copy)]
pub enum Reply {
    /// Serves the file, honouring Range and If-Range.
    Serve,
    /// Like Serve, but closes the connection after so many body bytes.
    Cut(usize),
    /// Serves the whole file whatever was asked for.
    Whole,
    /// Answers with this status and no body.
    Status(u16),
    /// Redirects to this port of the loopback interface.
    Redirect(u16),
    /// Sends so many body bytes, then nothing until the test ends.
    Stall(usize),
}

/// The server's entity tag for its file.
const ETAG: &str = "\"v1\"";

/// A hub on the loopback interface; each request takes the next reply, the
/// last one for ever.
pub struct Server {
    /// Its base URL.
    pub endpoint: String,
    /// The request heads, in lower case.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn start(content: Vec<u8>, replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for (i, stream) in listener.incoming().enumerate() {
                let reply = replies[i.min(replies.len() - 1)];
                let (content, seen) = (content.clone(), Arc::clone(&seen));
                // A client that hangs up makes this fail, and that is fine.
                thread::spawn(move || answer(stream.unwrap(), &content, reply, &seen));
            }
        });
        Self { endpoint, requests }
    }

    pub fn options(&self, cache: &TempDir) -> FetchOptions {
        let mut options = FetchOptions::new(cache.path());
        options.hub_endpoint = self.endpoint.clone();
        options
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// The lines of a request before its body; none if the other side has gone.
pub fn read_head(stream: &TcpStream) -> std::io::Result<Option<String>> {
    let mut head = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

fn answer(
    mut stream: TcpStream,
    content: &[u8],
    reply: Reply,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let Some(head) = read_head(&stream)? else { return Ok(()) };
    let head = head.to_lowercase();
    seen.lock().unwrap().push(head.clone());
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned)
    };
    let from: usize = field("range")
        .map_or(0, |range| range.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap());
    let fresh = field("if-range").is_none_or(|tag| tag == ETAG);
    let honour = from > 0 && fresh && !matches!(reply, Reply::Whole);
    if let Reply::Redirect(port) = reply {
        let location = format!("http://127.0.0.1:{port}/cdn");
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        );
    }
    if let Reply::Status(status) = reply {
        return write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
    }
    let total = content.len();
    let body = if honour { &content[from..] } else { content };
    let status = if honour { "206 Partial Content" } else { "200 OK" };
    write!(stream, "HTTP/1.1 {status}\r\nETag: {ETAG}\r\nConnection: close\r\n")?;
    if honour {
        write!(stream, "Content-Range: bytes {from}-{}/{total}\r\n", total - 1)?;
    }
    write!(stream, "Content-Length: {}\r\n\r\n", body.len())?;
    let sent = match reply {
        Reply::Cut(n) | Reply::Stall(n) => n.min(body.len()),
        _ => body.len(),
    };
    stream.write_all(&body[..sent])?;
    stream.flush()?;
    if matches!(reply, Reply::Stall(_)) {
        thread::sleep(Duration::from_secs(600));
    }
    Ok(())
}
