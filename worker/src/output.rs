//! Files that are there as a whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use imagegen_core::request::ImageFormat;

/// Why there is no file to write to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error("--output {path}: the extension decides the format; expected .png, .jpg, .jpeg or .webp", path = path.display())]
    Extension { path: PathBuf },
    #[error("--output {path}: the folder {folder} is not there", path = path.display(), folder = folder.display())]
    Folder { path: PathBuf, folder: PathBuf },
    #[error("cannot write {path}: {source}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Where the pictures of one request go.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    pub(crate) format: ImageFormat,
}

impl Output {
    /// Checks the name and the folder, before anything expensive begins.
    pub(crate) fn new(path: &Path) -> Result<Self, OutputError> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let format = match extension.as_deref() {
            Some("png") => ImageFormat::Png,
            Some("jpg" | "jpeg") => ImageFormat::Jpeg,
            Some("webp") => ImageFormat::Webp,
            _ => return Err(OutputError::Extension { path: path.to_owned() }),
        };
        let folder = folder(path);
        if !folder.is_dir() {
            return Err(OutputError::Folder { path: path.to_owned(), folder: folder.to_owned() });
        }
        Ok(Self { path: path.to_owned(), format })
    }

    /// The file of image `index` of `count`: its name as given, or with -1, -2, … before the extension.
    pub(crate) fn path(&self, index: usize, count: usize) -> PathBuf {
        if count == 1 {
            return self.path.clone();
        }
        let mut name = self.path.file_stem().unwrap_or_default().to_owned();
        name.push(format!("-{}.", index + 1));
        name.push(self.path.extension().unwrap_or_default());
        self.path.with_file_name(name)
    }
}

/// Writes beside the name, then renames: a reader never sees half a file, and a failure leaves what was there.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), OutputError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        // It may not have come into being.
        let _ = fs::remove_file(&temporary);
        OutputError::Write { path: path.to_owned(), source }
    })
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_images_are_numbered() {
        let output = Output::new(Path::new("apple.big.PNG")).unwrap();
        assert_eq!(output.path(0, 1), Path::new("apple.big.PNG"));
        assert_eq!(output.path(1, 2), Path::new("apple.big-2.PNG"));
    }

    #[test]
    fn names_that_cannot_be_are_refused_at_once() {
        let sentence = |path: &str| Output::new(Path::new(path)).unwrap_err().to_string();
        assert!(sentence("apple").contains("expected .png"));
        assert!(sentence("apple.gif").contains("expected .png"));
        assert!(sentence("no/such/folder/apple.png").contains("no/such/folder is not there"));
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("apple.png");
        fs::create_dir(&path).unwrap();
        assert!(matches!(write(&path, b"x"), Err(OutputError::Write { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("apple.png");
        fs::write(&path, b"old and longer").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
