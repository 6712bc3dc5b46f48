//! Shared by the integration tests.

pub mod bench;
pub mod chosen;
pub mod on_backend;
pub mod oracle;
pub mod plan;
pub mod random;
pub mod subject;
