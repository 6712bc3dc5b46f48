//! What the tensors of an architecture are called in files.

use crate::model::part::Part;

/// What tensors are called, in Hugging Face's and in llama.cpp's files: part, name, name.
/// Those of layers follow the layer's prefix.
pub(in crate::model) struct Names(pub &'static [(Part, &'static str, &'static str)]);

const HF_LAYER: &str = "model.layers.";
const GGUF_LAYER: &str = "blk.";

impl Names {
    /// Hugging Face's name of a tensor; none if the architecture has no such part.
    pub fn hf(&self, part: Part, layer: Option<usize>) -> Option<String> {
        let (_, name, _) = self.0.iter().find(|(of, ..)| *of == part)?;
        Some(match layer {
            Some(layer) => format!("{HF_LAYER}{layer}.{name}"),
            None => (*name).to_owned(),
        })
    }

    /// The part that Hugging Face's name stands for.
    pub fn part(&self, name: &str) -> Option<Part> {
        self.to_gguf(name).map(|(part, _)| part)
    }

    /// The part that Hugging Face's name stands for, and llama.cpp's name of it.
    pub fn to_gguf(&self, name: &str) -> Option<(Part, String)> {
        let found = |name: &str, of_layers: bool| {
            let known =
                self.0.iter().find(|(part, hf, _)| part.of_layers() == of_layers && *hf == name);
            known.map(|(part, _, gguf)| (*part, *gguf))
        };
        match name.strip_prefix(HF_LAYER) {
            None => found(name, false).map(|(part, gguf)| (part, gguf.to_owned())),
            Some(rest) => {
                let (layer, rest) = rest.split_once('.')?;
                let (part, gguf) = found(rest, true)?;
                Some((part, format!("{GGUF_LAYER}{layer}.{gguf}")))
            }
        }
    }
}
