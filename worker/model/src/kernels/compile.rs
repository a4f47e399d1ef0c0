//! Source to machine code, kept on disk.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::KernelError;
use super::ffi::Nvrtc;

/// Of all kernels.
pub(super) const SOURCE: &str = include_str!("kernels.cu");

/// Compute capability, for example (9, 0).
pub(super) type Capability = (i32, i32);

/// The compiler's options for GPUs of this compute capability.
pub(super) fn options((major, minor): Capability) -> [String; 2] {
    [format!("--gpu-architecture=sm_{major}{minor}"), "--std=c++17".to_owned()]
}

/// Machine code of [`SOURCE`], from `cache` where it is there.
///
/// # Errors
/// When there is no compiler or it refuses. A folder that cannot be read or written costs a compilation at each start.
pub(super) fn cubin(nvrtc: &Nvrtc, capability: Capability, cache: Option<&Path>) -> Result<Vec<u8>, KernelError> {
    let options = options(capability);
    let path = cache.map(|folder| folder.join(file_name(SOURCE, &options, nvrtc.version().unwrap_or_default())));
    if let Some(cubin) = path.as_deref().and_then(read) {
        return Ok(cubin);
    }
    let text = |text: &str| CString::new(text).map_err(|error| KernelError(error.to_string()));
    let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
    let cubin = nvrtc.compile(&text(SOURCE)?, &options)?.cubin;
    if let Some(path) = path {
        let _not_kept = write(&path, &cubin);
    }
    Ok(cubin)
}

/// Names all that the machine code depends on.
fn file_name(source: &str, options: &[String], (major, minor): (i32, i32)) -> String {
    let hash = Sha256::new().chain_update(source).chain_update(options.join(" "));
    format!("kernels-nvrtc{major}.{minor}-{:x}.cubin", hash.finalize())
}

/// The folder for machine code: the user's own cache, never one that others can write to, since what lies there is run.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let absolute = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("imagegen").join("kernels"))
}

/// The code with its checksum in front, if they fit.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (sum, cubin) = bytes.split_at_checked(32)?;
    (Sha256::digest(cubin).as_slice() == sum).then(|| cubin.to_vec())
}

/// Written beside and moved, so that no other process reads half of it.
fn write(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    let scratch = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    std::fs::write(&scratch, [Sha256::digest(cubin).as_slice(), cubin].concat())?;
    std::fs::rename(scratch, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where `deploy/scripts/libtorch.sh` puts the compiler, beside libtorch.
    fn nvrtc() -> Nvrtc {
        let wheels = crate::libtorch::cpu_library().unwrap().parent().unwrap().join("../../nvidia");
        let folders = std::fs::read_dir(&wheels).unwrap().map(|entry| entry.unwrap().path().join("lib"));
        let names =
            folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().map(|file| file.unwrap().path());
        let mut found: Vec<PathBuf> = names
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc.so")))
            .collect();
        found.sort();
        let path = found.pop().unwrap_or_else(|| {
            panic!("no libnvrtc.so under {}: run deploy/scripts/libtorch.sh", wheels.display());
        });
        Nvrtc::open(&path).unwrap()
    }

    #[test]
    fn every_kernel_compiles_for_every_gpu_without_a_warning_or_a_spill() {
        let nvrtc = nvrtc();
        for capability in [(8, 0), (8, 6), (8, 9), (9, 0)] {
            let mut options: Vec<CString> =
                options(capability).iter().map(|option| CString::new(option.as_str()).unwrap()).collect();
            options.extend([c"--ptxas-options=-v".to_owned(), c"--ptxas-options=--warn-on-spills".to_owned()]);
            let compiled = nvrtc.compile(&CString::new(SOURCE).unwrap(), &options).unwrap();
            let log = compiled.log;
            assert!(!log.to_lowercase().contains("warning"), "{capability:?}: {log}");
            let mut kernels = 0;
            for line in log.lines().filter(|line| line.contains("stack frame")) {
                assert!(
                    line.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"),
                    "{capability:?}: {log}"
                );
                kernels += 1;
            }
            // Those that write 8 bits are for GPUs that have them.
            assert_eq!(kernels, if capability >= (8, 9) { 11 } else { 7 }, "{capability:?}: {log}");
        }
    }

    #[test]
    fn machine_code_is_kept_and_damaged_code_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let nvrtc = nvrtc();
        let first = cubin(&nvrtc, (8, 0), Some(folder.path())).unwrap();
        let kept: Vec<PathBuf> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(kept.len(), 1);
        assert_eq!(read(&kept[0]), Some(first.clone()));
        std::fs::write(&kept[0], b"cut short").unwrap();
        assert_eq!(read(&kept[0]), None);
        assert!(cubin(&nvrtc, (8, 0), Some(folder.path())).unwrap() == first);
        assert_eq!(read(&kept[0]), Some(first));
    }

    #[test]
    fn the_file_name_changes_with_all_that_matters() {
        let name = |source, capability, version| file_name(source, &options(capability), version);
        let names = [
            name("a", (9, 0), (12, 4)),
            name("b", (9, 0), (12, 4)),
            name("a", (8, 0), (12, 4)),
            name("a", (9, 0), (13, 0)),
        ];
        assert!(names.iter().enumerate().all(|(index, name)| !names[..index].contains(name)), "{names:?}");
    }

    #[test]
    fn a_source_that_does_not_compile_is_told_with_the_compilers_words() {
        let options = [CString::new("--gpu-architecture=sm_80").unwrap()];
        let error = nvrtc().compile(c"extern \"C\" __global__ void broken() { nothing; }", &options).err().unwrap();
        assert!(error.to_string().contains("nothing"), "{error}");
    }
}
