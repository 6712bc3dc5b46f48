//! Shared by the integration tests.

pub mod bench;
pub mod chosen;
pub mod errors;
pub mod on_backend;
pub mod oracle;
pub mod plan;
pub mod random;
pub mod rounded;
pub mod sealed_half;
pub mod subject;
