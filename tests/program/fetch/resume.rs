//! Transfers that break off, and servers that redirect or cannot resume.

use super::*;

#[test]
fn a_cut_transfer_is_resumed_within_one_fetch() {
    let cache = tempfile::tempdir().unwrap();
    let replies = vec![Reply::Cut(300_000), Reply::Cut(100_000), Reply::Serve];
    let server = Server::start(model_bytes(), replies);
    let path = fetch(&manifest(vec![hub()]), &server.options(&cache), &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    let requests = server.requests();
    assert!(!requests[0].contains("range:"));
    assert!(requests[1].contains("\r\nrange: bytes=300000-"), "{}", requests[1]);
    assert!(requests[2].contains("\r\nrange: bytes=400000-"), "{}", requests[2]);
    assert!(requests[2].contains("if-range: \"v1\""), "{}", requests[2]);
    assert_eq!(left(&cache), DONE);
}

#[test]
fn a_cut_transfer_is_resumed_by_the_next_fetch() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_bytes(), vec![Reply::Cut(300_000), Reply::Serve]);
    let mut options = server.options(&cache);
    options.retries = 0;
    let manifest = manifest(vec![hub()]);
    let error = fetch(&manifest, &options, &mut Silent).unwrap_err();
    assert!(error.to_string().contains("after 300000 of 700000 bytes"), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    assert_eq!(left(&cache), RESUMABLE);
    let path = fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert!(server.requests()[1].contains("range: bytes=300000-"));
}

#[test]
fn a_server_that_cannot_resume_starts_over() {
    for second in [Reply::Whole, Reply::Status(416)] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(model_bytes(), vec![Reply::Cut(300_000), second, Reply::Serve]);
        let path = fetch(&manifest(vec![hub()]), &server.options(&cache), &mut Silent).unwrap();
        assert_eq!(fs::read(path).unwrap(), model_bytes());
    }
}

#[test]
fn a_redirect_is_followed_without_the_token() {
    let cache = tempfile::tempdir().unwrap();
    let cdn = Server::start(model_bytes(), vec![Reply::Cut(300_000), Reply::Serve]);
    let port = cdn.endpoint.rsplit(':').next().unwrap().parse().unwrap();
    let hub_server = Server::start(Vec::new(), vec![Reply::Redirect(port)]);
    let mut options = hub_server.options(&cache);
    options.hub_token = Some("secret".into());
    let path = fetch(&manifest(vec![hub()]), &options, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert!(hub_server.requests().iter().all(|head| head.contains("bearer secret")));
    let requests = cdn.requests();
    assert!(requests.iter().all(|head| !head.contains("secret")), "{requests:?}");
    assert!(requests[1].contains("range: bytes=300000-"), "{}", requests[1]);
}

#[test]
fn a_part_of_another_url_or_version_is_not_continued() {
    let manifest = manifest(vec![hub()]);
    let cut = |replies| {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(model_bytes(), replies);
        let mut options = server.options(&cache);
        options.retries = 0;
        fetch(&manifest, &options, &mut Silent).unwrap_err();
        assert_eq!(left(&cache), RESUMABLE);
        (cache, server, options)
    };
    // Another URL: no range is asked for.
    let (cache, _old, _) = cut(vec![Reply::Cut(300_000)]);
    let new = Server::start(model_bytes(), vec![Reply::Serve]);
    let path = fetch(&manifest, &new.options(&cache), &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert!(!new.requests()[0].contains("range:"));

    // Another entity tag: the server sends the whole file.
    let (cache, server, options) = cut(vec![Reply::Cut(300_000), Reply::Serve]);
    let origin = cache.path().join("models/m/m.gguf.part.origin");
    let noted = fs::read_to_string(&origin).unwrap();
    assert!(noted.contains("v1"), "{noted}");
    fs::write(&origin, noted.replace("v1", "v0")).unwrap();
    fs::write(cache.path().join("models/m/m.gguf.part"), vec![0; 300_000]).unwrap();
    let path = fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert_eq!(server.requests().len(), 2);
    assert!(server.requests()[1].contains("if-range: \"v0\""));
}

#[test]
fn a_damaged_part_is_fetched_once_more_from_the_start() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_bytes(), vec![Reply::Cut(300_000), Reply::Serve]);
    let mut options = server.options(&cache);
    options.retries = 0;
    let manifest = manifest(vec![hub()]);
    fetch(&manifest, &options, &mut Silent).unwrap_err();
    fs::write(cache.path().join("models/m/m.gguf.part"), vec![0; 300_000]).unwrap();
    let path = fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert_eq!(server.requests().len(), 3);
}
