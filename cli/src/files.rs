//! Writing pictures: whole or not at all.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// A file that cannot be written, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path itself stands in the way.
    #[error("cannot write {}: it is {found}", .path.display())]
    InTheWay {
        /// The path asked for.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The folder is missing or refuses new files.
    #[error("cannot write to the folder {}", .folder.display())]
    Folder {
        /// The folder of the file asked for.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Writing or renaming failed.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The path asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Fails now if `path` could not be written later.
///
/// # Errors
/// When the path is a folder or a read-only file, or its folder is missing or not writable.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(Error::InTheWay { path: path.to_owned(), found: "a folder" });
        }
        Ok(found) if !found.is_file() => return Ok(()),
        Ok(found) if found.permissions().readonly() => {
            return Err(Error::InTheWay { path: path.to_owned(), found: "a read-only file" });
        }
        Ok(_) | Err(_) => {}
    }
    let part = part_path(path);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&part)
        .and_then(|_| fs::remove_file(&part))
        .map_err(|source| Error::Folder { folder: folder_of(path), source })
}

/// Writes `data` beside `path` and renames it into place, so that a reader sees the old file or the new one.
/// Pipes and devices are written to directly.
///
/// # Errors
/// [`Error::Write`] with what the system said; nothing is left behind then.
pub fn write_whole(path: &Path, data: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let is_special = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    if is_special {
        return OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(data)).map_err(failed);
    }
    // Renaming over a symbolic link would replace the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let part = part_path(&target);
    let written = fs::File::create(&part)
        .and_then(|mut file| file.write_all(data).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&part, &target));
    written.map_err(|source| {
        // The picture is lost either way; what counts is the first error.
        let _ = fs::remove_file(&part);
        failed(source)
    })
}

/// A hidden name in the same folder, hence on the same file system, that two processes do not share.
fn part_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_replaces_the_old_file_and_leaves_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("apple.png");
        fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old", "the check must not touch the file");
        write_whole(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_found_before_the_request() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_writable(&folder.path().join("missing/apple.png")).unwrap_err();
        assert!(matches!(error, Error::Folder { folder, .. } if folder.ends_with("missing")));
    }

    #[test]
    fn a_folder_or_a_read_only_file_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(check_writable(folder.path()), Err(Error::InTheWay { found: "a folder", .. })));
        let path = folder.path().join("kept.png");
        fs::write(&path, "kept").unwrap();
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        assert!(matches!(check_writable(&path), Err(Error::InTheWay { found: "a read-only file", .. })));
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target.png"), folder.path().join("link.png"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_whole(&link, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let null = Path::new("/dev/null");
        check_writable(null).unwrap();
        write_whole(null, b"gone").unwrap();
        assert!(!fs::metadata(null).unwrap().is_file());
    }
}
