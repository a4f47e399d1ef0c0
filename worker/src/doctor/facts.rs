//! What is looked at: the device, the environment, the checkpoint.

use std::{collections::BTreeMap, fs};

use serde::Serialize;

use crate::{
    cli::DoctorArgs,
    device::{Device, Precision},
    gpu::{CudaVersion, GpuSample, ProbeOptions},
    profiles,
};

/// Everything that the findings follow from.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    #[serde(serialize_with = "as_text")]
    pub(crate) device: Device,
    pub(crate) sample: GpuSample,
    /// Why it is not the card that `--gpu-uuid` names.
    pub(crate) wrong_card: Option<String>,
    /// Names of the processes on the GPU, where this one may see them.
    pub(crate) process_names: BTreeMap<u32, String>,
    pub(crate) libtorch: Option<Libtorch>,
    /// `PYTORCH_CUDA_ALLOC_CONF`
    pub(crate) alloc_conf: Option<String>,
    pub(crate) model: Option<Model>,
    pub(crate) profile: Result<profiles::Choice, String>,
}

/// The libtorch of this program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Libtorch {
    pub(crate) version: String,
    /// The CUDA it was built for.
    pub(crate) cuda: CudaVersion,
}

impl Libtorch {
    /// The builds of deploy/scripts/libtorch.sh.
    #[cfg(feature = "torch")]
    fn of_program() -> Option<Self> {
        let version = imagegen_model::libtorch::version();
        let (major, minor) = match version.split('.').collect::<Vec<_>>().as_slice() {
            ["2", "5", ..] => (12, 4),
            ["2", "11", ..] => (13, 0),
            _ => return None,
        };
        Some(Self { version: version.to_owned(), cuda: CudaVersion { major, minor } })
    }

    #[cfg(not(feature = "torch"))]
    const fn of_program() -> Option<Self> {
        None
    }
}

/// The checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Model {
    /// What it is called, for the person.
    pub(crate) name: String,
    /// How many it has, or why they could not be counted.
    pub(crate) parameters: Result<u64, String>,
    #[serde(serialize_with = "as_text")]
    pub(crate) precision: Precision,
}

impl Facts {
    /// Looks.
    pub(crate) fn gather(args: DoctorArgs) -> Self {
        let DoctorArgs { model, precision, device, profile, gpu_uuid, nvml_library, json: _ } = args;
        let options = |device| ProbeOptions { device, library: nvml_library.clone(), gpu_uuid: gpu_uuid.clone() };
        let (device, sample) = match device {
            Some(device) => (device, options(device).probe().sample()),
            // Nobody said which: a GPU where there is one.
            None => {
                let sample = options(Device::Cuda(0)).probe().sample();
                if sample.uuid.is_some() || gpu_uuid.is_some() {
                    (Device::Cuda(0), sample)
                } else {
                    (Device::Cpu, options(Device::Cpu).probe().sample())
                }
            }
        };
        let model = model.map(|folder| Model {
            name: folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned(),
            parameters: profiles::parameters(&folder).map_err(|error| error.to_string()),
            precision: precision.unwrap_or_else(|| device.suited_precision()),
        });
        let parameters = model.as_ref().and_then(|model| model.parameters.clone().ok());
        let profile = profiles::choose(&profile, &profiles::all(), profiles::Card::of(&sample).as_ref(), parameters);
        let name = |pid: u32| Some((pid, fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned()));
        Self {
            wrong_card: options(device).check(&sample).err().map(|error| error.to_string()),
            process_names: sample.processes.iter().filter_map(|process| name(process.pid)).collect(),
            libtorch: Libtorch::of_program(),
            alloc_conf: std::env::var_os("PYTORCH_CUDA_ALLOC_CONF").map(|text| text.to_string_lossy().into_owned()),
            profile: profile.map_err(|error| error.to_string()),
            device,
            sample,
            model,
        }
    }
}

fn as_text<S: serde::Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}
