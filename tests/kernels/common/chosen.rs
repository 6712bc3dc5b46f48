//! Which formats and head dims a run is about.

/// All `formats` at `head_dim`. `KVFOLD_CONFORMANCE_FORMATS=f16,kf2` asks for some of them,
/// `KVFOLD_CONFORMANCE_DIMS=128` for other head dims.
pub fn chosen(formats: &[&'static str], head_dim: usize) -> Vec<(&'static str, usize)> {
    let list = |name| std::env::var(name).ok();
    choose(formats, head_dim, list("KVFOLD_CONFORMANCE_FORMATS"), list("KVFOLD_CONFORMANCE_DIMS"))
}

fn choose(
    formats: &[&'static str],
    head_dim: usize,
    named: Option<String>,
    dims: Option<String>,
) -> Vec<(&'static str, usize)> {
    let named: Option<Vec<_>> = named.as_ref().map(|list| list.split(',').collect());
    for name in named.iter().flatten() {
        assert!(formats.contains(name), "there is no format \"{name}\" among {formats:?}");
    }
    let dims = dims.map_or(vec![head_dim], |list| {
        let dim = |d: &str| d.parse().unwrap_or_else(|_| panic!("\"{d}\" is no head dim"));
        list.split(',').map(dim).collect()
    });
    let asked = formats.iter().filter(|format| named.as_ref().is_none_or(|n| n.contains(format)));
    asked.flat_map(|&format| dims.iter().map(move |&d| (format, d))).collect()
}

#[test]
fn formats_and_dims_are_chosen_by_name() {
    let of = |named: Option<&str>, dims: Option<&str>| {
        choose(&["f16", "kf2"], 64, named.map(str::to_owned), dims.map(str::to_owned))
    };
    assert_eq!(of(None, None), [("f16", 64), ("kf2", 64)]);
    assert_eq!(of(Some("kf2"), Some("128,256")), [("kf2", 128), ("kf2", 256)]);
    for (formats, dims) in [(Some("kf"), None), (None, Some("wide"))] {
        assert!(std::panic::catch_unwind(|| of(formats, dims)).is_err());
    }
}
