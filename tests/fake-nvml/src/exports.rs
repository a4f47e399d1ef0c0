//! The C functions, with the layouts of nvml.h (CUDA 12.4).
#![allow(unsafe_code, reason = "the C ABI of NVML: callers pass pointers to their own structures")]
#![allow(non_snake_case, reason = "NVML's own names")]
#![allow(clippy::missing_safety_doc, reason = "each function has NVML's own contract")]

use std::{
    ffi::{CStr, OsStr, c_char, c_int, c_uint, c_ulonglong, c_void},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    ptr,
};

use crate::{Device, Memory, MigDevice, Process, State};

type Return = c_uint;
type Handle = *mut c_void;

const SUCCESS: Return = 0;
const INVALID_ARGUMENT: Return = 2;
const NOT_SUPPORTED: Return = 3;
const NOT_FOUND: Return = 6;
const INSUFFICIENT_SIZE: Return = 7;
const UNKNOWN: Return = 999;

/// `NVML_VALUE_NOT_AVAILABLE`
const NOT_AVAILABLE: c_ulonglong = c_ulonglong::MAX;

#[repr(C)]
pub(crate) struct MemoryV1 {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
pub(crate) struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
pub(crate) struct ProcessV1 {
    pid: c_uint,
    used: c_ulonglong,
}

#[repr(C)]
pub(crate) struct ProcessV2 {
    pid: c_uint,
    used: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[repr(C)]
pub(crate) struct Pci {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    device_id: c_uint,
    subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

#[repr(C)]
pub(crate) struct UtilizationRates {
    gpu: c_uint,
    memory: c_uint,
}

/// The answers: `$FAKE_NVML_STATE`, or `nvml.json` beside this library.
fn state(function: &str) -> Result<State, Return> {
    let file = std::env::var_os("FAKE_NVML_STATE").map(PathBuf::from).or_else(beside).ok_or(UNKNOWN)?;
    let state: State = serde_json::from_slice(&fs::read(file).map_err(|_| UNKNOWN)?).map_err(|_| UNKNOWN)?;
    state.fail.get(function).map_or(Ok(state.clone()), |&code| Err(code))
}

fn beside() -> Option<PathBuf> {
    // SAFETY: `Dl_info` is plain data; dladdr fills it for an address in this library and keeps the name alive as long as
    // the library is loaded.
    let name = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let found = libc::dladdr(nvmlInit_v2 as *const c_void, &raw mut info);
        (found != 0 && !info.dli_fname.is_null()).then(|| CStr::from_ptr(info.dli_fname).to_bytes().to_vec())
    };
    Some(Path::new(OsStr::from_bytes(&name?)).with_file_name("nvml.json"))
}

/// A handle is 256 * (number of the card from 1) + number of the instance from 1, 0 for the card itself.
fn handle(card: usize, instance: Option<usize>) -> Handle {
    ptr::without_provenance_mut((card + 1) << 8 | instance.map_or(0, |instance| instance + 1))
}

enum Found<'a> {
    Card(&'a Device),
    Instance(&'a MigDevice),
}

impl Found<'_> {
    fn uuid(&self) -> &str {
        match self {
            Self::Card(device) => &device.uuid,
            Self::Instance(instance) => &instance.uuid,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Card(device) => &device.name,
            Self::Instance(instance) => &instance.name,
        }
    }

    fn memory(&self) -> Memory {
        match self {
            Self::Card(device) => device.memory,
            Self::Instance(instance) => instance.memory,
        }
    }

    fn processes(&self) -> &[Process] {
        match self {
            Self::Card(device) => &device.processes,
            Self::Instance(instance) => &instance.processes,
        }
    }

    /// Clocks, power and the like are those of a card; the driver refuses to tell them of an instance.
    fn card(&self) -> Result<&Device, Return> {
        match self {
            Self::Card(device) => Ok(device),
            Self::Instance(..) => Err(NOT_SUPPORTED),
        }
    }
}

fn find(state: &State, handle: Handle) -> Result<Found<'_>, Return> {
    let (card, instance) = (handle.addr() >> 8, handle.addr() & 0xff);
    let card = card.checked_sub(1).and_then(|card| state.devices.get(card)).ok_or(INVALID_ARGUMENT)?;
    match instance {
        0 => Ok(Found::Card(card)),
        number => card.mig.get(number - 1).map(Found::Instance).ok_or(INVALID_ARGUMENT),
    }
}

fn code(result: Result<(), Return>) -> Return {
    result.err().unwrap_or(SUCCESS)
}

fn put<T>(to: *mut T, value: T) -> Result<(), Return> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: NVML's contract: the pointer is one to a structure of the caller that this call may write.
    unsafe { to.write(value) };
    Ok(())
}

fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Result<(), Return> {
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    for (index, byte) in text.bytes().chain([0]).enumerate() {
        // SAFETY: the caller says that `length` bytes are there, and the text with its end is not longer.
        put(unsafe { to.add(index) }, byte.cast_signed())?;
    }
    Ok(())
}

/// # Safety
/// `text` is null or ends with a zero byte.
unsafe fn text<'a>(text: *const c_char) -> Result<&'a str, Return> {
    if text.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| INVALID_ARGUMENT)
}

fn put_processes<T>(
    function: &str,
    device: Handle,
    count: *mut c_uint,
    list: *mut T,
    make: fn(Process) -> T,
) -> Result<(), Return> {
    let state = state(function)?;
    let processes = find(&state, device)?.processes().to_vec();
    let there = u32::try_from(processes.len()).map_err(|_| UNKNOWN)?;
    // SAFETY: NVML's contract: `count` points to the number of elements that `list` has room for.
    let room = if count.is_null() { return Err(INVALID_ARGUMENT) } else { unsafe { count.read() } };
    put(count, there)?;
    if room < there {
        return Err(INSUFFICIENT_SIZE);
    }
    for (index, process) in processes.into_iter().enumerate() {
        let pid = if process.pid == 0 { std::process::id() } else { process.pid };
        // SAFETY: `index` is below the room that the caller has.
        put(unsafe { list.add(index) }, make(Process { pid, ..process }))?;
    }
    Ok(())
}

fn used(process: Process) -> c_ulonglong {
    process.used.unwrap_or(NOT_AVAILABLE)
}

fn process_v1(process: Process) -> ProcessV1 {
    ProcessV1 { pid: process.pid, used: used(process) }
}

fn process_v2(process: Process) -> ProcessV2 {
    ProcessV2 { pid: process.pid, used: used(process), gpu_instance: c_uint::MAX, compute_instance: c_uint::MAX }
}

/// Exports functions whose body gives `Result<(), Return>`; `state` is read for each call.
macro_rules! export {
    ($(fn $name:ident($($argument:ident: $type:ty),*) |$state:ident| $body:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($argument: $type),*) -> Return {
            code((|| -> Result<(), Return> {
                let $state = state(stringify!($name))?;
                $body
            })())
        }
    )*};
}

/// Exports functions that write one number of a card.
macro_rules! export_number {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $number:ty |$card:ident| $value:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(device: Handle, $($argument: $type,)* to: *mut $number) -> Return {
            code((|| -> Result<(), Return> {
                let state = state(stringify!($name))?;
                let found = find(&state, device)?;
                let $card = found.card()?;
                put(to, $value.ok_or(NOT_SUPPORTED)?)
            })())
        }
    )*};
}

export! {
    fn nvmlInit_v2() |_state| Ok(());
    fn nvmlInitWithFlags(_flags: c_uint) |_state| Ok(());
    fn nvmlShutdown() |_state| Ok(());
    fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) |state| put_text(to, length, &state.driver);
    fn nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) |state| put(to, state.cuda);
    fn nvmlDeviceGetCount_v2(to: *mut c_uint) |state| put(to, u32::try_from(state.devices.len()).map_err(|_| UNKNOWN)?);
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut Handle) |state| {
        let index = index as usize;
        if index < state.devices.len() { put(to, handle(index, None)) } else { Err(INVALID_ARGUMENT) }
    };
    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, to: *mut Handle) |state| {
        // SAFETY: NVML's contract for this argument.
        let uuid = unsafe { text(uuid) }?;
        let mut all = state.devices.iter().enumerate().flat_map(|(card, device)| {
            let instances = device.mig.iter().enumerate();
            let instances = instances.map(move |(number, instance)| (&instance.uuid, handle(card, Some(number))));
            [(&device.uuid, handle(card, None))].into_iter().chain(instances)
        });
        put(to, all.find(|(found, _)| *found == uuid).map(|(_, handle)| handle).ok_or(NOT_FOUND)?)
    };
    fn nvmlDeviceGetHandleByPciBusId_v2(bus_id: *const c_char, to: *mut Handle) |state| {
        // SAFETY: NVML's contract for this argument.
        let asked = unsafe { text(bus_id) }?;
        // libtorch writes the domain with four digits, NVML with eight.
        let card = state.devices.iter().position(|device| {
            device.pci_bus_id.to_lowercase().trim_start_matches('0') == asked.to_lowercase().trim_start_matches('0')
        });
        put(to, handle(card.ok_or(NOT_FOUND)?, None))
    };
    fn nvmlDeviceGetUUID(device: Handle, to: *mut c_char, length: c_uint) |state| put_text(to, length, find(&state, device)?.uuid());
    fn nvmlDeviceGetName(device: Handle, to: *mut c_char, length: c_uint) |state| put_text(to, length, find(&state, device)?.name());
    fn nvmlDeviceGetMemoryInfo(device: Handle, to: *mut MemoryV1) |state| {
        let Memory { total, reserved, used } = find(&state, device)?.memory();
        // The first version counts what the driver keeps as used.
        put(to, MemoryV1 { total, free: total.saturating_sub(used + reserved), used: used + reserved })
    };
    fn nvmlDeviceGetMemoryInfo_v2(device: Handle, to: *mut MemoryV2) |state| {
        let Memory { total, reserved, used } = find(&state, device)?.memory();
        let version = c_uint::try_from(size_of::<MemoryV2>() | 2 << 24).map_err(|_| UNKNOWN)?;
        put(to, MemoryV2 { version, total, reserved, free: total.saturating_sub(used + reserved), used })
    };
    fn nvmlDeviceGetPciInfo_v3(device: Handle, to: *mut Pci) |state| {
        let found = find(&state, device)?;
        let card = found.card()?;
        let mut numbers = card.pci_bus_id.split([':', '.']).map(|number| c_uint::from_str_radix(number, 16).map_err(|_| UNKNOWN));
        let mut next = || numbers.next().unwrap_or(Err(UNKNOWN));
        let (domain, bus, number) = (next()?, next()?, next()?);
        let mut pci = Pci { bus_id_legacy: [0; 16], domain, bus, device: number, device_id: 0, subsystem_id: 0, bus_id: [0; 32] };
        put_text(pci.bus_id.as_mut_ptr(), 32, &card.pci_bus_id)?;
        put(to, pci)
    };
    fn nvmlDeviceGetMigMode(device: Handle, current: *mut c_uint, pending: *mut c_uint) |state| {
        let mode = c_uint::from(!find(&state, device)?.card()?.mig.is_empty());
        put(current, mode)?;
        put(pending, mode)
    };
    fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, to: *mut c_uint) |state| {
        // As on a real card: room for seven, whether they are there or not.
        find(&state, device)?.card()?;
        put(to, 7)
    };
    fn nvmlDeviceGetMigDeviceHandleByIndex(device: Handle, index: c_uint, to: *mut Handle) |state| {
        if find(&state, device)?.card()?.mig.get(index as usize).is_none() {
            return Err(NOT_FOUND);
        }
        put(to, handle((device.addr() >> 8) - 1, Some(index as usize)))
    };
    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device: Handle, to: *mut Handle) |state| match find(&state, device)? {
        Found::Card(_) => Err(INVALID_ARGUMENT),
        Found::Instance(..) => put(to, handle((device.addr() >> 8) - 1, None)),
    };
    fn nvmlDeviceIsMigDeviceHandle(device: Handle, to: *mut c_uint) |state| {
        put(to, c_uint::from(matches!(find(&state, device)?, Found::Instance(..))))
    };
}

export_number! {
    fn nvmlDeviceGetClockInfo(kind: c_uint) -> c_uint |card| match kind {
        1 => card.sm_clock_mhz,
        2 => card.memory_clock_mhz,
        _ => None,
    };
    fn nvmlDeviceGetMaxClockInfo(kind: c_uint) -> c_uint |card| match kind {
        1 => card.max_sm_clock_mhz,
        2 => card.max_memory_clock_mhz,
        _ => None,
    };
    fn nvmlDeviceGetCurrentClocksThrottleReasons() -> c_ulonglong |card| card.throttle_reasons;
    fn nvmlDeviceGetTemperature(_sensor: c_uint) -> c_uint |card| card.temperature_celsius;
    fn nvmlDeviceGetPowerUsage() -> c_uint |card| card.power_milliwatts;
    fn nvmlDeviceGetEnforcedPowerLimit() -> c_uint |card| card.power_limit_milliwatts;
    fn nvmlDeviceGetUtilizationRates() -> UtilizationRates |card| card.utilization.map(|rates| UtilizationRates { gpu: rates.gpu, memory: rates.memory });
    fn nvmlDeviceGetPersistenceMode() -> c_uint |card| card.persistence_mode.map(c_uint::from);
    fn nvmlDeviceGetTotalEccErrors(kind: c_uint, _counter: c_uint) -> c_ulonglong |card| if kind == 0 { card.ecc_corrected } else { card.ecc_uncorrected };
}

/// What libtorch calls: the layout of the first version under the name without one.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses(
    device: Handle,
    count: *mut c_uint,
    list: *mut ProcessV1,
) -> Return {
    code(put_processes("nvmlDeviceGetComputeRunningProcesses", device, count, list, process_v1))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v2(
    device: Handle,
    count: *mut c_uint,
    list: *mut ProcessV2,
) -> Return {
    code(put_processes("nvmlDeviceGetComputeRunningProcesses_v2", device, count, list, process_v2))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Handle,
    count: *mut c_uint,
    list: *mut ProcessV2,
) -> Return {
    code(put_processes("nvmlDeviceGetComputeRunningProcesses_v3", device, count, list, process_v2))
}
