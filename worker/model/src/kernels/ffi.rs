//! The few functions of CUDA's driver and of NVRTC that the kernels need.
//!
//! Both are opened at run time, through the library of libtorch that links them, so that they are the very ones that libtorch
//! was built with; a binding that names one major version of NVRTC at compile time would fit only one of the two libtorch
//! versions.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::KernelError;

/// Functions of a library by name, with their types.
macro_rules! functions {
    ($struct:ident { $($name:ident: fn($($argument:ty),*) -> c_int;)* }) => {
        #[allow(non_snake_case, reason = "the names of the library")]
        struct $struct {
            $($name: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl $struct {
            fn find(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: each type above is that of the function of this name in the headers of CUDA 12 and 13.
                Ok(unsafe { Self { $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?,)* } })
            }
        }
    };
}

type Program = *mut c_void;

functions!(NvrtcFunctions {
    nvrtcVersion: fn(*mut c_int, *mut c_int) -> c_int;
    nvrtcCreateProgram: fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> c_int;
    nvrtcCompileProgram: fn(Program, c_int, *const *const c_char) -> c_int;
    nvrtcGetProgramLogSize: fn(Program, *mut usize) -> c_int;
    nvrtcGetProgramLog: fn(Program, *mut c_char) -> c_int;
    nvrtcGetCUBINSize: fn(Program, *mut usize) -> c_int;
    nvrtcGetCUBIN: fn(Program, *mut c_char) -> c_int;
    nvrtcDestroyProgram: fn(*mut Program) -> c_int;
});

functions!(DriverFunctions {
    cuInit: fn(c_uint) -> c_int;
    cuDeviceGet: fn(*mut c_int, c_int) -> c_int;
    cuDevicePrimaryCtxRetain: fn(*mut *mut c_void, c_int) -> c_int;
    cuCtxSetCurrent: fn(*mut c_void) -> c_int;
    cuModuleLoadData: fn(*mut *mut c_void, *const c_void) -> c_int;
    cuModuleGetFunction: fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
    cuLaunchKernel: fn(*mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void) -> c_int;
    cuGetErrorString: fn(c_int, *mut *const c_char) -> c_int;
});

fn open(path: &Path) -> Result<Library, KernelError> {
    // SAFETY: a library of CUDA or of libtorch; its initialisers set up its own state. It is never closed by its callers.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(KernelError::from)
}

/// The compiler.
pub(super) struct Nvrtc {
    functions: NvrtcFunctions,
}

/// What the compiler made.
pub(super) struct Compiled {
    /// Machine code for one architecture.
    pub(super) cubin: Vec<u8>,
    /// Warnings, and what was asked of the assembler.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests look for warnings"))]
    pub(super) log: String,
}

impl Nvrtc {
    /// The one in the library at `path`, or that it links.
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        let library = open(path)?;
        let functions = NvrtcFunctions::find(&library)?;
        std::mem::forget(library);
        Ok(Self { functions })
    }

    /// For example (12, 4).
    pub(super) fn version(&self) -> Result<(i32, i32), KernelError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes two numbers.
        nvrtc("nvrtcVersion", unsafe { (self.functions.nvrtcVersion)(&raw mut major, &raw mut minor) })?;
        Ok((major, minor))
    }

    /// Machine code of `source`.
    ///
    /// # Errors
    /// With the compiler's words.
    pub(super) fn compile(&self, source: &CStr, options: &[CString]) -> Result<Compiled, KernelError> {
        let mut program = ptr::null_mut();
        // SAFETY: text with a terminator, no headers.
        nvrtc("nvrtcCreateProgram", unsafe {
            let name = c"kernels.cu".as_ptr();
            (self.functions.nvrtcCreateProgram)(&raw mut program, source.as_ptr(), name, 0, ptr::null(), ptr::null())
        })?;
        let compiled = self.compile_program(program, options);
        // SAFETY: the program was made above and is not used afterwards.
        unsafe { (self.functions.nvrtcDestroyProgram)(&raw mut program) };
        compiled
    }

    fn compile_program(&self, program: Program, options: &[CString]) -> Result<Compiled, KernelError> {
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(options.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program lives, and so do the options' texts.
        let status = unsafe { (self.functions.nvrtcCompileProgram)(program, count, options.as_ptr()) };
        let log = self.bytes(program, self.functions.nvrtcGetProgramLogSize, self.functions.nvrtcGetProgramLog)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        if status != 0 {
            return Err(KernelError(format!("NVRTC refuses the kernels (status {status}): {log}")));
        }
        let cubin = self.bytes(program, self.functions.nvrtcGetCUBINSize, self.functions.nvrtcGetCUBIN)?;
        Ok(Compiled { cubin, log })
    }

    #[allow(clippy::unused_self, reason = "the functions are this library's")]
    fn bytes(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        read: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, KernelError> {
        let mut count = 0;
        // SAFETY: it writes one number.
        nvrtc("a size", unsafe { size(program, &raw mut count) })?;
        let mut bytes = vec![0u8; count];
        // SAFETY: it writes `count` bytes.
        nvrtc("the output", unsafe { read(program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

fn nvrtc(what: &str, status: c_int) -> Result<(), KernelError> {
    if status == 0 { Ok(()) } else { Err(KernelError(format!("NVRTC fails in {what} with status {status}"))) }
}

/// The kernels' machine code on one GPU.
pub(super) struct Module {
    driver: DriverFunctions,
    context: *mut c_void,
    module: *mut c_void,
}

/// One kernel of a [`Module`].
#[derive(Clone, Copy)]
pub(super) struct Function(*mut c_void);

// SAFETY: the driver's handles may be used from every thread, and nothing here changes after it was made.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// How many threads start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: (u32, u32),
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

impl Module {
    /// Loads machine code into the context that libtorch uses on GPU `index`, for the rest of the process's life.
    pub(super) fn load(library: &Path, index: usize, cubin: &[u8]) -> Result<Self, KernelError> {
        let library = open(library)?;
        let driver = DriverFunctions::find(&library)?;
        std::mem::forget(library);
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        let (mut device, mut context, mut module) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: each writes the handle that it is given; the code outlives the call, which copies it.
        unsafe {
            driver.check("cuInit", (driver.cuInit)(0))?;
            driver.check("cuDeviceGet", (driver.cuDeviceGet)(&raw mut device, index))?;
            let retained = (driver.cuDevicePrimaryCtxRetain)(&raw mut context, device);
            driver.check("cuDevicePrimaryCtxRetain", retained)?;
            driver.check("cuCtxSetCurrent", (driver.cuCtxSetCurrent)(context))?;
            driver.check("cuModuleLoadData", (driver.cuModuleLoadData)(&raw mut module, cubin.as_ptr().cast()))?;
        }
        Ok(Self { driver, context, module })
    }

    /// The kernel called `name`.
    pub(super) fn function(&self, name: &CStr) -> Result<Function, KernelError> {
        let mut function = ptr::null_mut();
        // SAFETY: the module lives; one handle is written.
        let status = unsafe { (self.driver.cuModuleGetFunction)(&raw mut function, self.module, name.as_ptr()) };
        self.driver.check("cuModuleGetFunction", status)?;
        Ok(Function(function))
    }

    /// Puts a kernel behind the work of `stream`.
    ///
    /// # Safety
    /// `arguments` must be those of the kernel in number and size, and the memory that they point to must be there until the
    /// kernel is done and be as large as the kernel expects.
    pub(super) unsafe fn launch(
        &self,
        function: Function,
        grid: Grid,
        stream: *mut c_void,
        arguments: &mut [u64],
    ) -> Result<(), KernelError> {
        let mut pointers: Vec<*mut c_void> =
            arguments.iter_mut().map(|argument| ptr::from_mut(argument).cast()).collect();
        let Grid { blocks: (x, y), threads, shared_bytes } = grid;
        // SAFETY: the caller's; little-endian numbers start where their slot does.
        unsafe {
            self.driver.check("cuCtxSetCurrent", (self.driver.cuCtxSetCurrent)(self.context))?;
            let status = (self.driver.cuLaunchKernel)(
                function.0,
                x,
                y,
                1,
                threads,
                1,
                1,
                shared_bytes,
                stream,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            );
            self.driver.check("cuLaunchKernel", status)
        }
    }
}

impl DriverFunctions {
    fn check(&self, what: &str, status: c_int) -> Result<(), KernelError> {
        if status == 0 {
            return Ok(());
        }
        let mut text = ptr::null();
        // SAFETY: it writes a pointer to a constant text, or null.
        unsafe { (self.cuGetErrorString)(status, &raw mut text) };
        let text = if text.is_null() {
            "an unknown error".into()
        } else {
            // SAFETY: a constant text with a terminator.
            unsafe { CStr::from_ptr(text) }.to_string_lossy()
        };
        // As libtorch words it, so that it is classified alike.
        Err(KernelError(format!("CUDA error: {text} ({what}, status {status})")))
    }
}
