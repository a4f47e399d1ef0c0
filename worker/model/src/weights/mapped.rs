//! One memory-mapped safetensors file.
#![allow(unsafe_code, reason = "mapping a file is unsafe by nature; nothing else here is")]

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::LoadError;

/// One memory-mapped safetensors file with its header parsed and found to cover the whole file.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    metadata: Metadata,
}

impl Mapped {
    /// # Errors
    /// When the file cannot be read, is cut short or has a broken header.
    pub(crate) fn open(path: PathBuf) -> Result<Self, LoadError> {
        let opened = File::open(&path).and_then(|file| {
            // SAFETY: the map is read-only and private to this process. A file that another process shortens while it is
            // mapped would end this process with SIGBUS; checkpoints are read-only volumes and live here only while loading.
            unsafe { Mmap::map(&file) }
        });
        let map = match opened {
            Ok(map) => map,
            Err(source) => return Err(LoadError::Unreadable { path, expected: "a weight file".to_owned(), source }),
        };
        match SafeTensors::read_metadata(&map) {
            Ok((header_bytes, metadata)) => Ok(Self { data_start: 8 + header_bytes, path, map, metadata }),
            Err(error) => Err(LoadError::Damaged { path, bytes: map.len() as u64, detail: error.to_string() }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All names, in the order of the file.
    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// The tensor's bytes, row-major and little-endian.
    pub(crate) fn bytes(&self, info: &TensorInfo) -> &[u8] {
        let (start, end) = info.data_offsets;
        &self.map[self.data_start + start..self.data_start + end]
    }
}
