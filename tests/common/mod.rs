//! Shared by the integration tests.
#![allow(dead_code)] // each test binary uses its own part

pub mod bench;
pub mod oracle;
pub mod plan;
pub mod random;
pub mod subject;
