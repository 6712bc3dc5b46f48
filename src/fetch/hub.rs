//! Files of a Hugging Face repository, over HTTP with resumption.

use std::time::Duration;

use ureq::http::{HeaderMap, Response, header};
use ureq::{Agent, Body};

use super::fail::Fail;
use super::options::FetchOptions;
use super::place::{Origin, Place};
use super::progress::Progress;
use super::transfer::{Ended, in_background, into_part, pause};

/// For the name to be resolved, and again for the connection to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// For the response to begin, and for each read after that.
const STALL: Duration = Duration::from_secs(30);

/// Between a transfer that broke off and its resumption.
const BACKOFF: Duration = Duration::from_millis(500);

/// How one request went.
enum Attempt {
    /// The `.part` is complete; `resumed` if it was not begun by this request.
    Complete { resumed: bool },
    /// The transfer broke off and may be resumed.
    Broken(String),
}

/// Where the hub serves a file of a repository.
pub(super) fn url(endpoint: &str, repository: &str, revision: &str, file: &str) -> String {
    format!("{}/{repository}/resolve/{revision}/{file}", endpoint.trim_end_matches('/'))
}

/// Downloads `url` into the place, resuming a `.part` of the same URL.
pub(super) fn download(
    url: &str,
    place: &Place<'_>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<std::path::PathBuf, Fail> {
    let agent = agent(url);
    let mut retries = options.retries;
    loop {
        match attempt(&agent, url, place, options, progress)? {
            Attempt::Complete { resumed } => match place.commit(options, progress) {
                // The older part may have been damaged (a crash, a server
                // without entity tags): once more from the start.
                Err(Fail::Source(_)) if resumed => {}
                outcome => return outcome,
            },
            Attempt::Broken(reason) if retries == 0 => return Err(Fail::Source(reason)),
            Attempt::Broken(_) => {
                retries -= 1;
                pause(BACKOFF, options)?;
            }
        }
    }
}

/// One request, from where the `.part` ends.
fn attempt(
    agent: &Agent,
    url: &str,
    place: &Place<'_>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Attempt, Fail> {
    let (have, etag) = place.resumable(url).unwrap_or((0, None));
    if have == place.size() {
        return Ok(Attempt::Complete { resumed: true });
    }
    let mut request = agent.get(url);
    if let Some(token) = &options.hub_token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
        if let Some(etag) = etag {
            request = request.header(header::IF_RANGE, etag);
        }
    }
    let response = in_background(options, move || request.call())?
        .map_err(|error| Fail::Source(format!("{url}: {error}")))?;
    let start = match response.status().as_u16() {
        200 => 0,
        206 if content_range(response.headers()) == Some((have, place.size())) => have,
        206 | 416 if have > 0 => {
            // The server's file is not the one that the part is of.
            place.discard();
            return Ok(Attempt::Broken(format!("{url}: the server refused to resume")));
        }
        status => return Err(Fail::Source(format!("{url}: {}", explain(status)))),
    };
    if let Some(length) = content_length(&response)
        && start + length != place.size()
    {
        place.discard();
        let (found, size) = (start + length, place.size());
        return Err(Fail::Source(format!("{url}: has {found} bytes, the manifest says {size}")));
    }
    if start == 0 {
        // Emptied before it gets its new origin: never new origin, old bytes.
        place.writer(0)?;
        let etag = strong_etag(response.headers());
        place.set_origin(Some(&Origin { url: url.to_owned(), etag }))?;
    }
    let body = response.into_body().into_reader();
    match into_part(body, start..place.size(), place, options, progress)? {
        Ended::Complete => Ok(Attempt::Complete { resumed: start > 0 }),
        Ended::Short(reason) => Ok(Attempt::Broken(format!("{url}: {reason}"))),
        Ended::TooLong => {
            place.discard();
            let size = place.size();
            Err(Fail::Source(format!("{url}: has more than the manifest's {size} bytes")))
        }
    }
}

fn agent(url: &str) -> Agent {
    let mut config = Agent::config_builder()
        .user_agent(concat!("kvfold/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .http_status_as_error(false)
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

fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
        authority.strip_prefix(host).is_some_and(|port| port.is_empty() || port.starts_with(':'))
    })
}

fn explain(status: u16) -> String {
    let remedy = match status {
        401 | 403 => "access is refused; set HF_TOKEN if the repository is private or gated",
        404 => "there is no such file",
        429 => "too many requests; try again later, or set HF_TOKEN",
        500.. => "the server failed; try again later",
        _ => "an unexpected answer",
    };
    format!("HTTP {status}: {remedy}")
}

fn content_length(response: &Response<Body>) -> Option<u64> {
    text(response.headers(), header::CONTENT_LENGTH)?.parse().ok()
}

/// First byte and total size of a partial response: `bytes 100-199/200`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let range = text(headers, header::CONTENT_RANGE)?.strip_prefix("bytes ")?;
    let (bytes, total) = range.split_once('/')?;
    let (first, _) = bytes.split_once('-')?;
    Some((first.trim().parse().ok()?, total.trim().parse().ok()?))
}

/// Only a strong entity tag may be used in If-Range (RFC 9110, 13.1.5).
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    text(headers, header::ETAG).filter(|etag| etag.starts_with('"')).map(str::to_owned)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_follow_the_hub() {
        let expected = "https://h/o/n/resolve/main/a/b.gguf";
        assert_eq!(url("https://h", "o/n", "main", "a/b.gguf"), expected);
        assert_eq!(url("https://h/", "o/n", "main", "a/b.gguf"), expected);
    }

    #[test]
    fn only_this_machine_is_loopback() {
        assert!(is_loopback("http://127.0.0.1:80/x") && is_loopback("http://localhost"));
        assert!(is_loopback("http://[::1]:8/x"));
        assert!(!is_loopback("http://localhost.example/x") && !is_loopback("https://h/127.0.0.1"));
    }

    #[test]
    fn partial_responses_are_read() {
        let range = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, value.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(range("bytes 100-199/200"), Some((100, 200)));
        assert_eq!(range("bytes 100-199/*"), None);
        assert_eq!(range("bytes */200"), None);
    }
}
