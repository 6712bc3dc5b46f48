//! Requests to the hub: timeouts, patience with a busy server, and what its refusals mean.
//!
//! The crate hf-hub is not used: it keeps files in a cache of its own without comparing
//! sums, and does not resume into a `.part` that is checked; both are done here for every
//! kind of source, over ureq.

use std::io::Read;
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
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
        // The hub redirects to another path of itself when a repository was renamed, and
        // to another host for the bytes: that one must not get the token.
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
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

/// One GET with the user's token, answered whatever its status.
pub(super) fn get(
    agent: &Agent,
    url: &str,
    headers: &[(HeaderName, String)],
    options: &FetchOptions,
) -> Result<Response<Body>, Fail> {
    let mut request = agent.get(url);
    if let Some(token) = &options.hub_token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    in_background(options, move || request.call())?
        .map_err(|error| Fail::Source(format!("{url}: {error}")))
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
