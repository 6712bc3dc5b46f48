//! Requests to the hub: timeouts, patience with a busy server, and what its refusals mean.
//!
//! The crate hf-hub is not used: it keeps files in a cache of its own without comparing
//! sums, and does not resume into a `.part` that is checked; both are done here for every
//! kind of source, over ureq.

use std::io::Read;
use std::time::Duration;

use ureq::http::{HeaderMap, HeaderName, Response, header};
use ureq::{Agent, Body};

use super::fail::Fail;
use super::options::FetchOptions;
use super::transfer::{in_background, pause};

/// For the name to be resolved, and again for the connection to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// For the response to begin, and for each read after that.
const STALL: Duration = Duration::from_secs(30);

/// Between a request that broke off and the next.
pub(super) const BACKOFF: Duration = Duration::from_millis(500);

/// Redirects that are followed for one request.
const REDIRECTS: usize = 8;

/// A server that asks for a longer pause than this is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The hub's name of what went wrong: `GatedRepo`, `RepoNotFound`, …
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

/// A whole answer that was read into memory.
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// The hub's name of the error.
    pub(super) code: Option<String>,
    /// The body, or its first bytes.
    pub(super) body: Vec<u8>,
}

/// How much of an answer is wanted.
#[derive(Clone, Copy)]
pub(super) enum Much {
    /// All of it; more than so many bytes are an error.
    All(u64),
    /// The first bytes of the file, so many at most.
    First(u64),
}

/// An agent for requests that begin at `url`.
pub(super) fn agent(url: &str) -> Agent {
    let mut config = Agent::config_builder()
        .user_agent(concat!("kvfold/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .http_status_as_error(false)
        // They are followed below.
        .max_redirects(0)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(STALL))
        .timeout_per_read(Some(STALL));
    if is_loopback(url) {
        // A mirror on this machine is not reached through a proxy.
        config = config.proxy(None);
    }
    config.build().into()
}

/// One GET, answered whatever its status. The hub redirects to another path of itself where
/// a repository was renamed, which needs the user's token, and to another host for the bytes
/// of large files, which must not get it.
pub(super) fn get(
    agent: &Agent,
    url: &str,
    headers: &[(HeaderName, String)],
    options: &FetchOptions,
) -> Result<Response<Body>, Fail> {
    let mut at = url.to_owned();
    for _ in 0..=REDIRECTS {
        let mut request = agent.get(&at);
        if let (Some(token), true) = (&options.hub_token, origin(&at) == origin(url)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = in_background(options, move || request.call())?
            .map_err(|error| Fail::Source(format!("{url}: {error}")))?;
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(response);
        }
        let location = text(response.headers(), header::LOCATION).unwrap_or_default();
        at = join(&at, location).ok_or_else(|| {
            Fail::Source(format!("{url}: redirects to {location:.200?}, which is not followed"))
        })?;
    }
    Err(Fail::Source(format!("{url}: redirects more than {REDIRECTS} times")))
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> String {
    let path =
        url.find("://").and_then(|at| url.get(at + 3..)?.find(['/', '?', '#']).map(|n| at + 3 + n));
    url.get(..path.unwrap_or(url.len())).unwrap_or(url).to_ascii_lowercase()
}

/// Where a redirect from `from` leads to; None if it is none or gives up HTTPS.
fn join(from: &str, location: &str) -> Option<String> {
    let scheme = from.split_once("://")?.0;
    if location.is_empty() {
        return None;
    }
    let to = if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        origin(from) + location
    } else {
        let path = from.split(['?', '#']).next()?;
        let folder =
            path.get(origin(from).len()..)?.rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{}{folder}/{location}", origin(from))
    };
    let new = to.split_once("://")?.0.to_ascii_lowercase();
    let kept = new == "https" || (new == "http" && scheme.eq_ignore_ascii_case("http"));
    kept.then_some(to)
}

/// An answer in memory; a busy server and a connection that breaks off are tried again.
pub(super) fn read(url: &str, much: Much, options: &FetchOptions) -> Result<Answer, Fail> {
    let agent = agent(url);
    let mut retries = options.retries;
    loop {
        let headers = match much {
            Much::All(_) => Vec::new(),
            Much::First(bytes) => {
                vec![(header::RANGE, format!("bytes=0-{}", bytes.saturating_sub(1)))]
            }
        };
        let response = get(&agent, url, &headers, options)?;
        let status = response.status().as_u16();
        let code = text(response.headers(), ERROR_CODE).map(str::to_owned);
        let wait = busy(status, response.headers());
        if let (Some(wait), 1..) = (wait, retries) {
            retries -= 1;
            pause(wait, options)?;
            continue;
        }
        let (Much::All(limit) | Much::First(limit)) = much;
        let mut body = response.into_body().into_reader().take(limit.saturating_add(1));
        let read = in_background(options, move || {
            let mut bytes = Vec::new();
            body.read_to_end(&mut bytes).map(|_| bytes)
        })?;
        match read {
            Ok(mut body) => {
                let whole = body.len() as u64 <= limit;
                if !whole && matches!(much, Much::All(_)) {
                    return Err(Fail::Source(format!("{url}: more than {limit} bytes")));
                }
                body.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
                return Ok(Answer { status, code, body });
            }
            Err(error) if retries == 0 => return Err(Fail::Source(format!("{url}: {error}"))),
            Err(_) => {
                retries -= 1;
                pause(BACKOFF, options)?;
            }
        }
    }
}

/// How long to wait before a request is worth repeating; None: it is not.
pub(super) fn busy(status: u16, headers: &HeaderMap) -> Option<Duration> {
    if !matches!(status, 429 | 500 | 502..=504) {
        return None;
    }
    // The other form, a date, is not used by the hub.
    let asked = text(headers, header::RETRY_AFTER).and_then(|text| text.trim().parse().ok());
    let wait = asked.map_or(BACKOFF, Duration::from_secs);
    (wait <= PATIENCE).then_some(wait.max(BACKOFF))
}

/// What a status means for a file that should be there.
pub(super) fn explain(status: u16) -> String {
    let remedy = match status {
        401 | 403 => {
            "access is refused; if the repository is gated, accept its licence on its page, \
             then set HF_TOKEN to a token of that account (as if it is private)"
        }
        404 => "there is no such file",
        429 => "too many requests; try again later, or set HF_TOKEN",
        500.. => "the server failed; try again later",
        _ => "an unexpected answer",
    };
    format!("HTTP {status}: {remedy}")
}

/// A header as text.
pub(super) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Whether a page for people came instead of data: a proxy or a login page answers so.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    text(headers, header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html"))
}

fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
        authority.strip_prefix(host).is_some_and(|port| port.is_empty() || port.starts_with(':'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        assert!(is_loopback("http://127.0.0.1:80/x") && is_loopback("http://localhost"));
        assert!(is_loopback("http://[::1]:8/x"));
        assert!(!is_loopback("http://localhost.example/x") && !is_loopback("https://h/127.0.0.1"));
    }

    #[test]
    fn a_redirect_leads_where_it_says_but_not_out_of_https() {
        let from = "https://Hub.co:8/o/n/x?y=/z";
        for (location, expected) in [
            ("/a/b?c", Some("https://hub.co:8/a/b?c")),
            ("https://cdn.co/f", Some("https://cdn.co/f")),
            ("//cdn.co/f", Some("https://cdn.co/f")),
            ("w", Some("https://hub.co:8/o/n/w")),
            ("http://hub.co:8/a", None),
            ("file:///etc/passwd", None),
            ("", None),
        ] {
            assert_eq!(join(from, location).as_deref(), expected, "{location}");
        }
        assert_eq!(join("http://h/a", "http://h:9/b").as_deref(), Some("http://h:9/b"));
        assert_eq!(join("http://h", "b").as_deref(), Some("http://h/b"));
        for (a, b, same) in [
            ("https://h/a", "https://H/b?c", true),
            ("https://h", "https://h/", true),
            ("https://h/a", "https://h:444/a", false),
            ("https://h/a", "http://h/a", false),
            ("https://h/a", "https://h.evil/a", false),
            ("https://h/a", "https://h@evil/a", false),
        ] {
            assert_eq!(origin(a) == origin(b), same, "{a} {b}");
        }
    }

    #[test]
    fn a_busy_server_is_waited_for_but_not_long() {
        let wait = |status, after: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(after) = after {
                headers.insert(header::RETRY_AFTER, after.parse().unwrap());
            }
            busy(status, &headers)
        };
        assert_eq!(wait(429, Some("2")), Some(Duration::from_secs(2)));
        assert_eq!(wait(503, Some("0")), Some(BACKOFF));
        assert_eq!(wait(503, None), Some(BACKOFF));
        assert_eq!(wait(502, Some("Fri, 31 Dec 1999 23:59:59 GMT")), Some(BACKOFF));
        assert_eq!(wait(429, Some("3600")), None);
        assert_eq!(wait(429, Some("99999999999999999999")), Some(BACKOFF));
        assert_eq!((wait(404, Some("1")), wait(501, None), wait(200, None)), (None, None, None));
    }
}
