//! From a question and its documents to the tokens of one prompt.

use crate::run_args::{RunArgs, THINKING};
use anyhow::{Result, anyhow, bail};
use kvfold::Error;
use kvfold::engine::LoadedModel;
use kvfold::model::Message;
use kvfold::rag::{Loaded, Packed, fill, load, read_document};

/// A prompt and what was put into it.
pub struct Prompt {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The context's text; empty without documents.
    pub context: String,
    /// What the user should know about the documents.
    pub notices: Vec<String>,
}

/// What the user named, read before the model is: a wrong path must not cost a
/// download.
pub struct Sources {
    /// The text of `--file`, each under its name.
    files: String,
    /// The documents of `--docs`, if there are any.
    docs: Option<Loaded>,
}

impl Sources {
    /// Reads files, folders and standard input.
    pub fn read(args: &RunArgs) -> Result<Self> {
        let mut files = String::new();
        for path in &args.file {
            let document = read_document(path)?;
            files += &format!("[{}]\n{}\n\n", document.source(), document.text().trim_end());
        }
        let docs = if args.docs.is_empty() { None } else { Some(load(&args.docs)?) };
        Ok(Self { files, docs })
    }
}

/// Builds the prompt that the arguments describe.
pub fn build(args: &RunArgs, sources: &Sources, model: &LoadedModel) -> Result<Prompt> {
    let mut notices = unread(args, model);
    let mut context = sources.files.clone();
    let bare = encode(args, model, &context)?;
    if let Some(loaded) = &sources.docs {
        notices.extend(loaded.notice());
        let limit = model.context();
        // A few tokens may join differently once the text stands in its place.
        let taken = bare.len() + args.max_tokens + 16;
        let room = limit.saturating_sub(taken);
        if room == 0 {
            let reserved = args.max_tokens;
            return Err(Error::ContextTooLong { tokens: bare.len(), limit, reserved }.into());
        }
        let budget = args.context_budget.min(room);
        let count =
            |text: &str| model.tokenizer.encode_plain(text).map_or(usize::MAX, |ids| ids.len());
        let packed = fill(&loaded.documents, &args.question, budget, &count)?;
        check(&packed, budget, &mut notices)?;
        context += &packed.render();
    }
    let ids = if context.is_empty() { bare } else { encode(args, model, &context)? };
    Ok(Prompt { ids, context, notices })
}

fn check(packed: &Packed, budget: usize, notices: &mut Vec<String>) -> Result<()> {
    if packed.pieces.is_empty() {
        bail!(
            "no passage of the documents fits into {budget} tokens; raise --context-budget or lower --max-tokens"
        );
    }
    if packed.fallback {
        notices.push(
            "no passage shares a word with the question: using the beginning of the documents"
                .into(),
        );
    }
    Ok(())
}

/// Options that the chat template does not look at.
fn unread(args: &RunArgs, model: &LoadedModel) -> Vec<String> {
    let template = model.template.as_ref();
    let reads = |name: &str| template.is_some_and(|template| template.reads(name));
    let mut notices = Vec::new();
    if args.think.is_some() && !THINKING.iter().any(|name| reads(name)) {
        notices.push("--think does nothing: the chat template has no switch for it".to_owned());
    }
    for name in args.chat_template_kwargs.iter().flat_map(|all| all.keys()) {
        if !reads(name) {
            let name = name.escape_debug();
            notices.push(format!("the chat template does not look at \"{name}\""));
        }
    }
    notices
}

fn encode(args: &RunArgs, model: &LoadedModel, context: &str) -> Result<Vec<u32>> {
    let tokenizer = &model.tokenizer;
    let text = if context.is_empty() {
        args.question.clone()
    } else {
        format!("Text:\n{}\n\nQuestion: {}", context.trim_end(), args.question)
    };
    let Some(template) = model.template.as_ref().filter(|_| !args.raw) else {
        return Ok(tokenizer.encode_prompt(&text)?);
    };
    let system = args.system.as_deref().unwrap_or(match context.is_empty() {
        true => "You are a helpful assistant.",
        false => "Answer the question from the text. Be brief and exact.",
    });
    let messages = [
        Message::new("system", tokenizer.guard(system)),
        Message::new("user", tokenizer.guard(&text)),
    ];
    // Some templates know no system role; its text then leads the user's.
    let options = args.chat_options();
    let rendered = template.render_with(&messages, &options).or_else(|_| {
        let text = tokenizer.guard(&format!("{system}\n\n{text}"));
        template.render_with(&[Message::new("user", text)], &options)
    });
    let rendered = rendered.map_err(|error| {
        anyhow!(
            "{error}; give another template with --chat-template FILE, or continue the text as it is with --raw"
        )
    })?;
    let ids = tokenizer.encode_chat(&rendered)?;
    if ids.is_empty() {
        bail!(
            "chat template: it makes no text of the question; give another template with --chat-template FILE, or continue the text as it is with --raw"
        );
    }
    Ok(ids)
}
