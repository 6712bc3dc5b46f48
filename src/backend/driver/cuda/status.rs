//! What the driver answers.

use crate::error::{Error, Result};
use cudarc::driver::{result::DriverError, sys};

/// The driver's answer as a result.
pub(super) fn check(operation: &str, status: sys::CUresult) -> Result<()> {
    match status {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(refused(operation, status)),
    }
}

/// The driver's complaint as an error.
pub(super) fn refused(operation: &str, status: sys::CUresult) -> Error {
    let error = DriverError(status);
    let text = |t: Result<&std::ffi::CStr, DriverError>| {
        t.map_or_else(|_| format!("{status:?}"), |t| t.to_string_lossy().into_owned())
    };
    let (name, what) = (text(error.error_name()), text(error.error_string()));
    Error::device(operation, format!("{what} ({name})"))
}

/// Logs what a destructor cannot return.
pub(super) fn complain(operation: &str, status: sys::CUresult) {
    if let Err(error) = check(operation, status) {
        tracing::warn!("{error}");
    }
}
