//! One greedy answer through the library: `cargo run --release --example 01_ask -- MODEL TEXT`.

use kvfold::backend::WeightPolicy;
use kvfold::engine::{Engine, EngineConfig, Event, LoadedModel, Request};

fn main() -> kvfold::Result<()> {
    let mut args = std::env::args().skip(1);
    let (path, text) = (args.next().unwrap_or_default(), args.next().unwrap_or_default());
    let model = LoadedModel::open(path, WeightPolicy::Auto)?;
    let prompt = model.tokenizer.encode_plain(&text)?;
    let engine = Engine::start(model, EngineConfig::default())?;
    for event in engine.submit(Request::new(prompt, 64))? {
        match event {
            Event::Token { text, .. } => print!("{text}"),
            Event::Finished { text, stats, .. } => {
                println!("{text}\n{} bytes of KV cache", stats.kv_bytes);
            }
            Event::Failed(error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
