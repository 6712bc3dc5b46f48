//! Contexts as model cards write them and as flags do.

use super::{copy, golden, set};
use kvfold::model::{Checkpoint, ContextOptions, RopeStretch};
use serde_json::json;

/// What the file says of YaRN and what flags say of a file without it are one model.
#[test]
fn flags_stretch_a_rope_as_a_file_does() {
    let card = copy("smollm2");
    let rope = json!({"rope_theta": 100_000.0, "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 512});
    set(card.path(), "config.json", "rope_parameters", rope);
    let card = Checkpoint::open(card.path()).unwrap();
    assert_eq!(card.config().context, 2048);
    let mut options = ContextOptions::default();
    options.stretch = Some(RopeStretch::Yarn);
    for (context, factor) in [(None, Some(4.0)), (Some(2048), None), (Some(2048), Some(4.0))] {
        (options.context, options.factor) = (context, factor);
        for path in ["smollm2", "smollm2/model.gguf"] {
            let plain = Checkpoint::open(golden(path)).unwrap();
            let flagged = plain.with_context(&options).unwrap();
            assert_eq!(flagged.config().rope, card.config().rope, "{path}");
            assert_eq!(flagged.config().attention_scale, card.config().attention_scale);
            assert_eq!(flagged.config().context, 2048);
        }
    }
}

/// The older form, as the cards of Qwen2.5 have it, at the top of config.json.
#[test]
fn a_card_that_says_the_factor_alone_lengthens_the_context() {
    for (key, context) in [("type", 2048), ("rope_type", 2048)] {
        let model = copy("qwen2");
        let max = Checkpoint::open(model.path()).unwrap().config().context;
        set(model.path(), "config.json", "rope_parameters", json!(null));
        let scaling = json!({key: "yarn", "factor": 4.0, "original_max_position_embeddings": max});
        set(model.path(), "config.json", "rope_scaling", scaling);
        let config = Checkpoint::open(model.path()).unwrap().config().clone();
        assert_eq!(config.context, 4 * max, "{key}");
        assert_eq!((max, config.context), (context / 4, context));
    }
}

#[test]
fn a_gemma_whose_full_layers_have_yarn_is_refused() {
    let model = copy("gemma3");
    let rope = json!({
        "full_attention": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    });
    set(model.path(), "config.json", "rope_parameters", rope);
    let error = Checkpoint::open(model.path()).unwrap_err().to_string();
    assert!(error.contains("yarn") && error.contains("not supported"), "{error}");
}
