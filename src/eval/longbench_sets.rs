//! LongBench's data sets, by its `dataset2metric.json`, `dataset2maxlen.json` and `eval.py`.

use super::longbench::Kind;

/// What one of the data sets asks and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataSet {
    /// What its questions are.
    pub kind: Kind,
    /// Tokens of an answer, at most.
    pub max_tokens: usize,
    /// Whether only the first line of an answer counts: its prompts are lists of examples,
    /// which models go on with.
    pub first_line: bool,
}

/// The data set of a name; LongBench-E's are named alike, with a suffix.
pub(super) fn data_set(name: &str) -> Option<DataSet> {
    let name = name.strip_suffix("_e").unwrap_or(name);
    let (kind, max_tokens) = match name {
        "narrativeqa" | "qasper" => (Kind::Qa, 128),
        "multifieldqa_en" => (Kind::Qa, 64),
        "hotpotqa" | "2wikimqa" | "musique" | "triviaqa" => (Kind::Qa, 32),
        "multifieldqa_zh" => (Kind::QaZh, 64),
        "gov_report" | "qmsum" | "multi_news" => (Kind::Summary, 512),
        "samsum" => (Kind::Summary, 128),
        "dureader" => (Kind::SummaryZh, 128),
        "vcsum" => (Kind::SummaryZh, 512),
        "trec" | "lsht" => (Kind::Classification, 64),
        "passage_retrieval_en" | "passage_retrieval_zh" => (Kind::Retrieval, 32),
        "passage_count" => (Kind::Count, 32),
        "lcc" | "repobench-p" => (Kind::Code, 64),
        _ => return None,
    };
    let first_line = matches!(name, "trec" | "triviaqa" | "samsum" | "lsht");
    Some(DataSet { kind, max_tokens, first_line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_known_by_their_names() {
        let found = |name| data_set(name).map(|set| (set.kind, set.max_tokens, set.first_line));
        assert_eq!(found("hotpotqa_e"), Some((Kind::Qa, 32, false)));
        assert_eq!(found("samsum"), Some((Kind::Summary, 128, true)));
        assert_eq!(found("lcc"), Some((Kind::Code, 64, false)));
        assert_eq!((found("mine"), found("_e"), found("")), (None, None, None));
    }
}
