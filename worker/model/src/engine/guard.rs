//! The only place where panics of libtorch are caught.

use std::panic::{AssertUnwindSafe, catch_unwind};

use imagegen_core::engine::{EngineError, Stage};

use super::memory::Memory;
use crate::failure::{classify, panic_message};

/// Runs a piece of the model, and turns a panic of libtorch into what it means.
pub(super) fn guard<T>(memory: Memory, stage: Stage, run: impl FnOnce() -> T) -> Result<T, EngineError> {
    let before = memory.mark();
    let run = AssertUnwindSafe(|| {
        let _no_grad = tch::no_grad_guard();
        run()
    });
    catch_unwind(run).map_err(|panic| memory.explain(classify(stage, &panic_message(&*panic)), before))
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    #[test]
    fn a_panic_of_libtorch_becomes_an_error_that_names_its_stage() {
        let wrong =
            || Tensor::zeros([2, 3], (tch::Kind::Float, tch::Device::Cpu)).matmul(&Tensor::from_slice(&[1.0f32]));
        match guard(Memory::Cpu, Stage::Vae, wrong) {
            Err(EngineError::Failed { stage: Stage::Vae, detail }) => {
                assert!(detail.contains("size mismatch"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn memory_that_is_not_there_is_out_of_memory() {
        let huge = || Tensor::empty([1 << 50], (tch::Kind::Float, tch::Device::Cpu));
        let error = guard(Memory::Cpu, Stage::Transformer, huge).unwrap_err();
        assert!(matches!(error, EngineError::OutOfMemory { stage: Stage::Transformer, .. }), "{error}");
    }
}
