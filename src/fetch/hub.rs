//! Files of a Hugging Face repository, over HTTP with resumption.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::{HeaderMap, Response, header};
use ureq::{Agent, Body};

use super::fail::Fail;
use super::http::{BACKOFF, agent, busy, explain, get, is_page, text};
use super::options::FetchOptions;
use super::place::{Origin, Place};
use super::progress::Progress;
use super::transfer::{Ended, into_part, pause};

/// How one request went.
enum Attempt {
    /// The `.part` is complete; `resumed` if it was not begun by this request.
    Complete { resumed: bool },
    /// The transfer broke off and may be resumed after the pause.
    Broken(String, Duration),
}

/// What need not be escaped in a path: RFC 3986's unreserved characters, and the slash.
const PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Where the hub serves a file of a repository.
pub(super) fn url(endpoint: &str, repository: &str, revision: &str, file: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    format!("{endpoint}/{repository}/resolve/{}/{}", escape(revision), escape(file))
}

/// `text` as a part of a URL's path; slashes stay.
pub(super) fn escape(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, PATH)
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
            Attempt::Broken(reason, _) if retries == 0 => return Err(Fail::Source(reason)),
            Attempt::Broken(_, wait) => {
                retries -= 1;
                pause(wait, options)?;
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
    let mut headers = Vec::new();
    if have > 0 {
        headers.push((header::RANGE, format!("bytes={have}-")));
        headers.extend(etag.map(|etag| (header::IF_RANGE, etag)));
    }
    let response = get(agent, url, &headers, options)?;
    let start = match response.status().as_u16() {
        200 => 0,
        206 if content_range(response.headers()) == Some((have, place.size())) => have,
        206 | 416 if have > 0 => {
            // The server's file is not the one that the part is of.
            place.discard();
            return Ok(Attempt::Broken(format!("{url}: the server refused to resume"), BACKOFF));
        }
        status => {
            let reason = format!("{url}: {}", explain(status));
            return match busy(status, response.headers()) {
                Some(wait) => Ok(Attempt::Broken(reason, wait)),
                None => Err(Fail::Source(reason)),
            };
        }
    };
    if is_page(response.headers()) {
        // What has been transferred before is still good.
        let reason = "a web page came instead (of a proxy, or to log in?)";
        return Err(Fail::Source(format!("{url}: {reason}")));
    }
    if let Some(length) = content_length(&response)
        && start.checked_add(length) != Some(place.size())
    {
        place.discard();
        let (found, size, says) = (start.saturating_add(length), place.size(), place.says());
        return Err(Fail::Source(format!("{url}: has {found} bytes, {says} says {size}")));
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
        Ended::Short(reason) => Ok(Attempt::Broken(format!("{url}: {reason}"), BACKOFF)),
        Ended::TooLong => {
            place.discard();
            let (size, says) = (place.size(), place.says());
            Err(Fail::Source(format!("{url}: has more than the {size} bytes that {says} says")))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_follow_the_hub() {
        let expected = "https://h/o/n/resolve/main/a/b.gguf";
        assert_eq!(url("https://h", "o/n", "main", "a/b.gguf"), expected);
        assert_eq!(url("https://h/", "o/n", "main", "a/b.gguf"), expected);
        let escaped = "https://h/o/n/resolve/refs/pr/1/a%20b%23%3F%25%C3%A9.gguf";
        assert_eq!(url("https://h", "o/n", "refs/pr/1", "a b#?%é.gguf"), escaped);
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
