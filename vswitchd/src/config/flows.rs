//! A bridge's flow file, as the desired state knows it: where it is and which content it had.
//!
//! The content itself is not kept (it may be a million flows); a digest of it is, so that a file that changed in place
//! makes a different state, and one that didn't makes the same.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A flow file with the digest of its content when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowFile {
    /// Where it is.
    pub path: PathBuf,
    /// Digest of its content; comparable only within one process.
    pub digest: u64,
}

/// A flow file that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("flows {path}: {source}", path = .path.display())]
pub struct FlowFileError {
    path: PathBuf,
    source: io::Error,
}

impl FlowFile {
    /// Reads the file at `path` for its digest.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn read(path: &Path) -> Result<FlowFile, FlowFileError> {
        match digest(path) {
            Ok(digest) => Ok(FlowFile { path: path.to_owned(), digest }),
            Err(source) => Err(FlowFileError { path: path.to_owned(), source }),
        }
    }
}

fn digest(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut hasher = DefaultHasher::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.write(chunk.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
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
