//! From a question and its documents to the tokens of one prompt.

use crate::run_args::{RunArgs, THINKING};
use crate::stdin::piped;
use crate::terminal::note;
use crate::wording;
use anyhow::{Error, Result, anyhow, bail};
use kvfold::engine::LoadedModel;
use kvfold::model::Message;
use kvfold::rag::{Document, Loaded, Packed, fill, load, read_document};

/// A prompt and what was put into it.
pub struct Prompt {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The context's text; empty without documents.
    pub context: String,
    /// Tokens of the answer, at most: those asked for, or what the model's context leaves.
    pub max_tokens: usize,
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
    /// Reads files, folders and standard input, which is the question if there is none.
    pub fn read(args: &mut RunArgs) -> Result<Self> {
        if args.question == "-" {
            args.question.clear();
        }
        let piped = piped(args)?;
        let mut files = String::new();
        let mut add = |document: &Document| {
            files += &format!("[{}]\n{}\n\n", document.source(), document.text().trim_end());
        };
        match piped {
            Some(text) if args.question.trim().is_empty() && !args.show_context => {
                args.question = text.text().trim().to_owned();
            }
            Some(text) => {
                if !args.quiet {
                    let bytes = text.text().len();
                    note(format_args!(
                        "standard input ({bytes} bytes) is part of the context; </dev/null leaves it out"
                    ));
                }
                add(&text);
            }
            None => {}
        }
        for path in &args.file {
            add(&read_document(path)?);
        }
        let docs = if args.docs.is_empty() { None } else { Some(load(&args.docs)?) };
        Ok(Self { files, docs })
    }
}

/// Builds the prompt that the arguments describe.
pub fn build(args: &RunArgs, sources: &Sources, model: &LoadedModel) -> Result<Prompt> {
    let mut notices = unread(args, model);
    let mut context = sources.files.clone();
    let example = match context.is_empty() && sources.docs.is_none() {
        true => Vec::new(),
        false => wording::example(args, model),
    };
    let encode = |context: &str| encode(args, model, &example, context);
    let bare = encode(&context)?;
    let room = |tokens: usize| match model.context().saturating_sub(tokens) {
        0 => Err(too_long(model, tokens, encode("").map_or(0, |ids| ids.len()))),
        room => Ok(room),
    };
    let left = room(bare.len())?;
    if let Some(loaded) = &sources.docs {
        notices.extend(loaded.notice());
        // The answer's part is what was asked for, but passages get at least half. A few
        // tokens may join differently once the text stands in its place.
        let room = left.saturating_sub(args.max_tokens.min(left / 2) + 16);
        let budget = args.passages().min(room);
        let count =
            |text: &str| model.tokenizer.encode_plain(text).map_or(usize::MAX, |ids| ids.len());
        let packed = fill(&loaded.documents, &args.question, budget, &count)?;
        check(&packed, budget, &mut notices)?;
        context += &packed.render();
    }
    let ids = if context.is_empty() { bare } else { encode(&context)? };
    let max_tokens = args.max_tokens.min(room(ids.len())?);
    Ok(Prompt { ids, context, max_tokens, notices })
}

/// Why a prompt of so many tokens leaves no room for an answer; `alone`: without files.
fn too_long(model: &LoadedModel, tokens: usize, alone: usize) -> Error {
    let limit = model.context();
    match limit.saturating_sub(alone + 1) {
        0 => anyhow!(
            "the question has {alone} tokens and the model's context holds {limit}; shorten it"
        ),
        fits => anyhow!(
            "the files have {} tokens and {fits} fit (the model's context holds {limit}); use --docs \
             instead of --file, which chooses the passages that matter, or shorten them",
            tokens - alone.min(tokens)
        ),
    }
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

/// The prompt's tokens; `example`: the turns before the question.
fn encode(
    args: &RunArgs,
    model: &LoadedModel,
    example: &[Message],
    context: &str,
) -> Result<Vec<u32>> {
    let tokenizer = &model.tokenizer;
    let question = wording::question(args, context);
    let Some(template) = model.template.as_ref().filter(|_| !args.raw) else {
        return Ok(tokenizer.encode_prompt(&question)?);
    };
    let system = wording::system(args, context);
    let mut messages = example.to_vec();
    messages.push(Message::new("user", tokenizer.guard(&question)));
    let options = args.chat_options();
    let mut all = vec![Message::new("system", tokenizer.guard(system))];
    all.extend(messages.iter().cloned());
    // Some templates know no system role; its text then leads the user's.
    let rendered = template.render_with(&all, &options).or_else(|_| {
        messages[0].content = format!("{}\n\n{}", tokenizer.guard(system), messages[0].content);
        template.render_with(&messages, &options)
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
