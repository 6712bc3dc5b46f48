//! Options that were given and do nothing beside the others: the user is told.

use crate::run_args::RunArgs;
use kvfold::codec::KvFormat;

/// What to tell of options that have no effect on a model with or without a chat template.
pub fn of(args: &RunArgs, has_template: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let sampling: Vec<&str> = [
        ("--top-k", args.top_k.is_some()),
        ("--top-p", args.top_p.is_some()),
        ("--min-p", args.min_p.is_some()),
        ("--seed", args.seed.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
    .collect();
    if args.temperature == 0.0 && !sampling.is_empty() {
        notes.push(format!(
            "{} without effect: at temperature 0 the likeliest token is taken; add --temperature 0.7 to sample",
            is(&sampling)
        ));
    }
    if args.context_budget.is_some() && args.docs.is_empty() {
        notes.push("--context-budget is without effect: only --docs chooses passages".into());
    }
    if args.system.is_some() && (args.raw || !has_template) {
        let why = if args.raw { "--raw leaves out" } else { "the model has no" };
        notes.push(format!("--system is without effect: {why} the chat template"));
    }
    let pages: Vec<&str> =
        [("--sinks", args.sinks.is_some()), ("--hot-window", args.hot_window.is_some())]
            .into_iter()
            .filter_map(|(name, given)| given.then_some(name))
            .collect();
    let seals = args.kv.parse::<KvFormat>().map_or(true, |format| format.seals());
    if !pages.is_empty() && !seals {
        notes.push(format!("{} without effect: {} keeps all in 16 bits", is(&pages), args.kv));
    }
    notes
}

/// `--a is`, `--a and --b are`.
fn is(names: &[&str]) -> String {
    match names {
        [one] => format!("{one} is"),
        [first @ .., last] => format!("{} and {last} are", first.join(", ")),
        [] => String::new(),
    }
}
