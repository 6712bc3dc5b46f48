//! What a progress bar is drawn from: how far a prompt has come.

use crate::command::model;
use kvfold::backend::WeightPolicy;
use kvfold::engine::{Engine, EngineConfig, Event, LoadedModel, Request};

#[test]
fn each_part_of_a_prompt_is_told_before_the_first_token() {
    let model = LoadedModel::open(model(), WeightPolicy::Auto).unwrap();
    let engine = Engine::start(model, EngineConfig::default().with_prefill_chunk(64)).unwrap();
    let prompt: Vec<u32> = (0..150).collect();
    let mut events = engine.submit(Request::new(prompt, 2).with_ignore_eos(true)).unwrap();
    assert!(matches!(events.next(), Some(Event::Admitted { .. })));
    for part in [64, 128, 150] {
        let event = events.next();
        assert!(
            matches!(event, Some(Event::Prefill { done, total: 150 }) if done == part),
            "{event:?}"
        );
    }
    assert!(events.next().is_some_and(|event| matches!(event, Event::Token { .. })));
    assert!(events.all(|event| matches!(event, Event::Token { .. } | Event::Finished { .. })));
}
