//! What a scheduler knows of a request.

/// A request of a [`Scheduler`](super::Scheduler), in the order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Demand {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the answer, at most.
    pub max_tokens: usize,
    /// Higher ones come first; 0 is usual.
    pub priority: i32,
}

impl Demand {
    /// Of usual priority.
    pub fn new(prompt: usize, max_tokens: usize) -> Self {
        Self { prompt, max_tokens, priority: 0 }
    }

    /// Sets the priority.
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }
}
