//! Puts the library and its answers into a folder.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use crate::State;

/// A copy of the library with answers of its own. Each copy in a process is a library of its own.
#[derive(Debug, Clone)]
pub struct FakeNvml {
    folder: PathBuf,
}

impl FakeNvml {
    /// Copies the library into the folder as `libnvidia-ml.so.1` and writes the answers beside it.
    ///
    /// # Errors
    /// When the library was not built beside the running program, or a file cannot be written.
    pub fn install(folder: &Path, state: &State) -> io::Result<Self> {
        let fake = Self { folder: folder.to_owned() };
        fake.answer(state)?;
        fs::copy(built()?, fake.library())?;
        Ok(fake)
    }

    /// The library.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.folder.join("libnvidia-ml.so.1")
    }

    /// Replaces the answers at once: no call sees half a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn answer(&self, state: &State) -> io::Result<()> {
        let new = self.folder.join("nvml.json.new");
        fs::write(&new, serde_json::to_vec_pretty(state)?)?;
        fs::rename(new, self.folder.join("nvml.json"))
    }
}

/// Where Cargo put the library: beside the running test, or one folder up.
fn built() -> io::Result<PathBuf> {
    let program = env::current_exe()?;
    let candidates = program.ancestors().skip(1).take(3).map(|folder| folder.join("libfake_nvml.so"));
    candidates.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        let reason = format!(
            "libfake_nvml.so is not in the folder of {} or the two above it; expected Cargo to build it as a dependency of \
             the test",
            program.display()
        );
        io::Error::new(io::ErrorKind::NotFound, reason)
    })
}
