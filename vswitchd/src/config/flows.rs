//! A bridge's flow file, as the desired state knows it: where it is and what was in it.
//!
//! The content is kept for as long as the bridge has these flows, which takes a fraction of what the flows themselves do. So what was
//! checked is what is installed, whatever becomes of the file meanwhile, and the way back from a change that fails leads to the
//! flows that there were, though the file has others by then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A flow file with its content when it was read. One that changed in place is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowFile {
    /// Where it is.
    pub path: PathBuf,
    /// What was in it: flows, one a line.
    pub text: Arc<str>,
}

/// A flow file that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("flows {path}: {source}", path = .path.display())]
pub struct FlowFileError {
    path: PathBuf,
    source: io::Error,
}

impl FlowFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// If it can't be read, or is no text.
    pub fn read(path: &Path) -> Result<FlowFile, FlowFileError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(FlowFile { path: path.to_owned(), text: text.into() }),
            Err(source) => Err(FlowFileError { path: path.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_content_is_another_state() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let empty = FlowFile::read(file.path()).unwrap();
        assert_eq!(FlowFile::read(file.path()).unwrap(), empty);
        std::fs::write(file.path(), "actions=NORMAL\n").unwrap();
        assert_ne!(FlowFile::read(file.path()).unwrap(), empty);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path(), Path::new("/nonexistent/flows")] {
            let error = FlowFile::read(path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("flows {}: ", path.display())), "{error}");
        }
    }
}
