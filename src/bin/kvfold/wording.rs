//! How a question, with or without a text, is put to a model.

use crate::run_args::RunArgs;
use kvfold::engine::LoadedModel;
use kvfold::model::Message;

/// Small models go on with questions of their own where the answer should end.
pub const NEXT_QUESTION: &str = "\n\nQuestion:";

/// A question and how it is answered from a text. Behind it small models invent less: measured
/// in `docs/notes/first-answer.md`.
const EXAMPLE: [(&str, &str); 2] = [
    (
        "user",
        "Text:\n[tea.md:3-9] Tea > Green tea\nGreen tea is steamed right after it is picked, so that \
         its leaves stay green. Black tea is\nleft to wither first.\n\nQuestion: How do the leaves of \
         green tea keep their colour?",
    ),
    ("assistant", "Green tea is steamed right after it is picked, so that its leaves stay green."),
];

/// The question, behind the text that it is asked of, if there is one.
pub fn question(args: &RunArgs, context: &str) -> String {
    match context.trim_end() {
        "" => args.question.clone(),
        text => format!("Text:\n{text}\n\nQuestion: {}", args.question),
    }
}

/// The system message.
pub fn system<'a>(args: &'a RunArgs, context: &str) -> &'a str {
    args.system.as_deref().unwrap_or(match context.is_empty() {
        true => "You are a helpful assistant.",
        false => "Answer the question from the text. Be brief and exact.",
    })
}

/// The turns before a question about a text. Who gives a system message of their own says there
/// how to answer; a model with a short context has no room for them.
pub fn example(args: &RunArgs, model: &LoadedModel) -> Vec<Message> {
    let tokens =
        |(_, text): &(_, &str)| model.tokenizer.encode_plain(text).map_or(0, |ids| ids.len());
    let fits = EXAMPLE.iter().map(tokens).sum::<usize>() <= model.context() / 8;
    let turns = EXAMPLE.iter().filter(|_| fits && args.system.is_none());
    turns.map(|(role, text)| Message::new(*role, *text)).collect()
}
