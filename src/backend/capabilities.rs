//! What a device can do.

use crate::codec::Codec;

/// What a device can do, for those who choose what to ask of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The device in words.
    pub name: String,
    /// The one 16-bit type in which it computes and writes pages; `None`: pages of any, and
    /// activations in f32.
    pub element: Option<Codec>,
    /// Whether work is enqueued rather than done, so that the host can run a step ahead.
    pub enqueues: bool,
    /// Whether the formats of a KV group's streams may differ.
    pub mixed_formats: bool,
}
