//! `config.json` of transformers, in the form before version 5 (`rope_theta`,
//! `rope_scaling`) and since (`rope_parameters`).

use serde_json::Value;

use super::json::Fields;
use crate::backend::Activation;
use crate::model::config::{Arch, ModelConfig, check_layers};
use crate::model::rope::{RopeConfig, RopeScaling, Yarn};
use crate::{Error, Result};

/// What transformers takes for fields that are absent.
#[derive(Default)]
pub(in crate::model) struct JsonDefaults {
    /// `None`: hidden / heads.
    pub head_dim: Option<usize>,
    /// `None`: as many as heads.
    pub kv_heads: Option<usize>,
    pub context: usize,
    pub sliding: Sliding,
    /// Where `rope_parameters` has the rotation of full layers, if sliding ones have
    /// another.
    pub full_rope: Option<&'static str>,
}

/// Which layers slide if there is a window, and no list of them.
#[derive(Clone, Copy, Default)]
pub(in crate::model) enum Sliding {
    /// None.
    #[default]
    Never,
    /// All.
    Always,
    /// If `use_sliding_window` says so, those from `max_window_layers` on, which is this by
    /// default.
    FromLayer(usize),
    /// All but the last of so many, again and again.
    AllBut(usize),
}

/// The numbers of a decoder of the common kind.
pub(in crate::model) fn decoder(
    fields: &Fields<'_>,
    arch: &'static Arch,
    defaults: &JsonDefaults,
) -> Result<ModelConfig> {
    refuse_unknown(fields)?;
    let hidden = fields.required("hidden_size")?;
    let heads = fields.required("num_attention_heads")?;
    let layers = check_layers(fields.path, fields.required("num_hidden_layers")?)?;
    let (sliding_window, sliding_layers) = read_sliding(fields, defaults.sliding, layers)?;
    let default_head_dim = defaults.head_dim.or(hidden.checked_div(heads)).unwrap_or(0);
    let head_dim = fields.uint("head_dim")?.unwrap_or(default_head_dim);
    // A null means "as many as heads"; only an absent field has the default.
    let kv_heads = match fields.json.get("num_key_value_heads") {
        Some(Value::Null) => heads,
        _ => fields.uint("num_key_value_heads")?.or(defaults.kv_heads).unwrap_or(heads),
    };
    let context = fields.uint("max_position_embeddings")?.unwrap_or(defaults.context);
    let rope = read_rope(fields, defaults.full_rope, head_dim, context)?;
    let context = rope.stretched_context(context);

    Ok(ModelConfig {
        arch,
        vocab: fields.required("vocab_size")?,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate: fields.required("intermediate_size")?,
        norm_eps: fields.float("rms_norm_eps")?.unwrap_or(1e-6),
        activation: Activation::Silu,
        attention_scale: rope.attention_scale(head_dim),
        rope,
        sliding_rope: None,
        embedding_scale: 1.0,
        context,
        sliding_window,
        sliding_layers,
        tied: fields.bool("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: false,
        qk_norm: false,
        post_norms: false,
        bos: fields.ids("bos_token_id")?.first().copied(),
        eos: Vec::new(),
    })
}

/// Refuses what would change the arithmetic in ways that are not implemented.
fn refuse_unknown(fields: &Fields<'_>) -> Result<()> {
    if let Some(act) = fields.str("hidden_act")?.filter(|&act| act != "silu" && act != "swish") {
        return Err(fields.unsupported(&format!("the activation \"{act}\" (hidden_act)")));
    }
    for bias in ["attention_bias", "mlp_bias"] {
        if fields.bool(bias)? == Some(true) {
            return Err(fields.unsupported(&format!("{bias}: true")));
        }
    }
    if fields.json.get("quantization_config").is_some_and(|q| !q.is_null()) {
        return Err(Error::Unsupported {
            what: format!("{}: quantization_config", fields.path.display()),
            remedy: "use the unquantised checkpoint, or a GGUF file".into(),
        });
    }
    Ok(())
}

/// The window and the layers that use it, as in transformers' configurations.
fn read_sliding(
    fields: &Fields<'_>,
    sliding: Sliding,
    layers: usize,
) -> Result<(Option<usize>, Vec<bool>)> {
    let used = match sliding {
        Sliding::Never => false,
        Sliding::Always | Sliding::AllBut(_) => true,
        Sliding::FromLayer(_) => fields.bool("use_sliding_window")?.unwrap_or(false),
    };
    let window = match fields.json.get("sliding_window") {
        _ if !used => None,
        None => Some(4096),
        Some(Value::Null) => None,
        Some(_) => fields.uint("sliding_window")?.filter(|&w| w > 0),
    };
    if window.is_none() {
        return Ok((None, vec![false; layers]));
    }
    let flags: Vec<bool> = match fields.json.get("layer_types").filter(|v| !v.is_null()) {
        None => {
            let first = fields.uint("max_window_layers")?;
            let pattern = fields.uint("sliding_window_pattern")?;
            let slides = |i: usize| match sliding {
                Sliding::FromLayer(default) => i >= first.unwrap_or(default),
                Sliding::AllBut(default) => !(i + 1).is_multiple_of(pattern.unwrap_or(default)),
                Sliding::Never | Sliding::Always => true,
            };
            (0..layers).map(slides).collect()
        }
        Some(types) => {
            let list = types.as_array().ok_or_else(|| fields.bad("layer_types is not a list"))?;
            list.iter()
                .map(|kind| match kind.as_str() {
                    Some("sliding_attention") => Ok(true),
                    Some("full_attention") => Ok(false),
                    _ => Err(fields.unsupported(&format!("the layer type {kind}"))),
                })
                .collect::<Result<_>>()?
        }
    };
    if flags.len() != layers {
        return Err(
            fields.bad(format!("layer_types has {} entries for {layers} layers", flags.len()))
        );
    }
    Ok((window, flags))
}

/// The rotation; `kind` is what `rope_parameters` calls these layers, where they differ.
pub(in crate::model) fn read_rope(
    fields: &Fields<'_>,
    kind: Option<&str>,
    head_dim: usize,
    context: usize,
) -> Result<RopeConfig> {
    let object = |name: &str| fields.json.get(name).filter(|v| !v.is_null());
    let all = object("rope_parameters");
    let nested = kind.and_then(|kind| all?.get(kind));
    let scaling = nested.or(all).or_else(|| object("rope_scaling"));
    if scaling.is_some_and(|s| !s.is_object()) {
        return Err(fields.bad("the RoPE parameters are not an object"));
    }
    let empty = Value::Object(serde_json::Map::new());
    let rope = Fields { path: fields.path, json: scaling.unwrap_or(&empty) };
    let theta = match rope.float("rope_theta")? {
        Some(theta) => theta,
        None => fields.float("rope_theta")?.unwrap_or(10_000.0),
    };
    for place in [fields, &rope] {
        if place.float("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            return Err(fields.unsupported("a partial rotary embedding"));
        }
    }
    if rope.json.as_object().is_some_and(|o| o.values().any(Value::is_object)) {
        return Err(fields.unsupported("RoPE parameters that differ between layers"));
    }
    let kind = rope.str("rope_type")?.or(rope.str("type")?).unwrap_or("default");
    let number = |name: &str| {
        rope.float(name)?.ok_or_else(|| fields.bad(format!("RoPE type \"{kind}\" lacks {name}")))
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: rope.required("original_max_position_embeddings")?,
        },
        "yarn" => RopeScaling::Yarn(read_yarn(fields, &rope, context)?),
        other => return Err(fields.unsupported(&format!("the RoPE scaling \"{other}\""))),
    };
    Ok(RopeConfig { theta, scaling, dim: head_dim })
}

/// As `_compute_yarn_parameters` of transformers.
fn read_yarn(fields: &Fields<'_>, rope: &Fields<'_>, context: usize) -> Result<Yarn> {
    let original = match fields.uint("original_max_position_embeddings")? {
        Some(original) => original,
        None => rope.uint("original_max_position_embeddings")?.unwrap_or(context),
    };
    let factor = rope.float("factor")?.unwrap_or(context as f32 / original as f32);
    let above_0 = |name: &str| Ok::<_, Error>(rope.float(name)?.filter(|&x| x != 0.0));
    let attention_factor = match (above_0("mscale")?, above_0("mscale_all_dim")?) {
        (Some(over), Some(under)) => Yarn::mscale(factor, over) / Yarn::mscale(factor, under),
        _ => Yarn::mscale(factor, 1.0),
    };
    let defaults = Yarn::new(factor, original);
    Ok(Yarn {
        beta_fast: above_0("beta_fast")?.unwrap_or(defaults.beta_fast),
        beta_slow: above_0("beta_slow")?.unwrap_or(defaults.beta_slow),
        truncate: rope.bool("truncate")?.unwrap_or(defaults.truncate),
        attention_factor: rope.float("attention_factor")?.unwrap_or(attention_factor),
        ..defaults
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::files::hf::read_config;
    use serde_json::json;
    use std::path::Path;

    fn parse(json: &Value) -> Result<ModelConfig> {
        read_config(Path::new("config.json"), json, None)
    }

    fn base(kind: &str) -> Value {
        json!({
            "model_type": kind, "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
            "eos_token_id": 2, "bos_token_id": 1
        })
    }

    fn with(kind: &str, more: Value) -> Value {
        let mut json = base(kind);
        for (key, value) in more.as_object().unwrap() {
            json[key] = value.clone();
        }
        json
    }

    #[test]
    fn both_forms_of_rope() {
        let old = with(
            "llama",
            json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}}),
        );
        let new = with(
            "llama",
            json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}}),
        );
        let old = parse(&old).unwrap();
        assert_eq!(old, parse(&new).unwrap());
        assert_eq!(old.rope.theta, 5e5);
        assert_eq!(
            old.rope.scaling,
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 8192
            }
        );
        let linear = with("llama", json!({"rope_scaling": {"type": "linear", "factor": 2.0}}));
        assert_eq!(parse(&linear).unwrap().rope.scaling, RopeScaling::Linear { factor: 2.0 });
    }

    #[test]
    fn yarn_has_defaults_as_in_transformers() {
        let yarn = |more: Value| match parse(&with("llama", more)).unwrap().rope.scaling {
            RopeScaling::Yarn(yarn) => yarn,
            other => panic!("{other:?}"),
        };
        let plain = yarn(json!({"max_position_embeddings": 4096, "rope_scaling":
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}));
        assert_eq!(plain, Yarn::new(4.0, 1024));
        assert!((plain.attention_factor - 1.138_629_4).abs() < 1e-6);
        // The factor from the contexts; null and 0 are absent.
        let implied = yarn(json!({"max_position_embeddings": 4096,
            "original_max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "yarn", "factor": null, "beta_fast": 0.0,
                "mscale": 0.7, "mscale_all_dim": 0.0, "original_max_position_embeddings": 7}}));
        assert_eq!(implied, plain);
        let all = yarn(json!({"rope_parameters": {"rope_type": "yarn", "factor": 8.0,
            "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0,
            "truncate": false, "mscale": 0.7, "mscale_all_dim": 0.4}}));
        assert_eq!((all.beta_fast, all.beta_slow, all.truncate), (16.0, 2.0, false));
        let want = Yarn::mscale(8.0, 0.7) / Yarn::mscale(8.0, 0.4);
        assert_eq!(all.attention_factor, want);
        let named = yarn(json!({"rope_parameters":
            {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25}}));
        assert_eq!(named.attention_factor, 1.25);
    }

    /// Model cards say to add `rope_scaling` and nothing else; then vLLM holds the original
    /// context times the factor.
    #[test]
    fn yarn_lengthens_the_context_whatever_else_is_changed() {
        let context = |max: usize, rope: Value| {
            let more = json!({"max_position_embeddings": max, "rope_scaling": rope});
            parse(&with("qwen2", more)).unwrap().context
        };
        let card =
            json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
        // Qwen2.5's card, Qwen3's, and a file that says all of it.
        assert_eq!([32_768, 40_960, 131_072].map(|max| context(max, card.clone())), [131_072; 3]);
        // Without the original context it is the file's.
        assert_eq!(context(512, json!({"rope_type": "yarn", "factor": 4.0})), 2048);
        // Never less than the file says; other kinds change nothing.
        let short = json!({"type": "yarn", "factor": 2, "original_max_position_embeddings": 1024});
        assert_eq!(context(4096, short), 4096);
        assert_eq!(context(4096, json!({"type": "linear", "factor": 4.0})), 4096);
    }

    #[test]
    fn yarn_is_what_transformers_computes() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/rope-yarn.json");
        let text = std::fs::read_to_string(path).unwrap();
        let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert!(cases.len() > 5);
        for case in cases {
            let rope = parse(&with("llama", case["config"].clone())).unwrap().rope;
            let close = |got: f64, want: &Value| {
                // transformers computes in f32.
                (got / want.as_f64().unwrap() - 1.0).abs() < 3e-6
            };
            let want = case["inv_freq"].as_array().unwrap();
            let got = rope.inv_freq();
            assert_eq!(got.len(), want.len());
            assert!(got.iter().zip(want).all(|(g, w)| close(*g, w)), "{case}: {got:?}");
            let factor = rope.attention_factor();
            assert!(close(factor.into(), &case["attention_factor"]), "{case}: {factor}");
        }
    }

    #[test]
    fn unsupported_things_are_named() {
        for (more, named) in [
            (json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}}), "dynamic"),
            (json!({"rope_parameters": {"rope_type": "longrope"}}), "longrope"),
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config"),
        ] {
            let error = parse(&with("llama", more)).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            assert!(error.to_string().contains(named), "{error}");
        }
        let error = parse(&base("mixtral")).unwrap_err();
        assert!(matches!(error, Error::UnknownArchitecture { .. }), "{error}");
        let error = parse(&with("llama", json!({"hidden_size": "big"}))).unwrap_err().to_string();
        assert!(error.contains("hidden_size is \"big\""), "{error}");
    }

    #[test]
    fn windows_by_family() {
        let mistral = parse(&base("mistral")).unwrap();
        assert_eq!((mistral.sliding_window, mistral.sliding_layers), (Some(4096), vec![true; 4]));
        let none = parse(&with("mistral", json!({"sliding_window": null}))).unwrap();
        assert_eq!((none.sliding_window, none.sliding_layers), (None, vec![false; 4]));
        let qwen =
            json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 3});
        let qwen = parse(&with("qwen2", qwen)).unwrap();
        assert_eq!(qwen.sliding_layers, [false, false, false, true]);
        assert!(qwen.qkv_bias && !qwen.qk_norm);
        let typed = json!({"use_sliding_window": true, "sliding_window": 16, "layer_types":
            ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]});
        let typed = parse(&with("qwen3", typed)).unwrap();
        assert_eq!(typed.sliding_layers, [false, true, false, true]);
        assert_eq!((typed.head_dim, typed.qk_norm), (128, true));
    }

    #[test]
    fn ends_of_generation_from_both_files() {
        let generation = json!({"eos_token_id": [7, 2, 7]});
        let config =
            read_config(Path::new("config.json"), &base("llama"), Some(&generation)).unwrap();
        assert_eq!((config.bos, config.eos), (Some(1), vec![7, 2]));
        assert_eq!(config.head_dim, 16);
    }
}
