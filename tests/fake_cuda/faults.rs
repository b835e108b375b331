//! Faults of the host code, planted into its calls of CUDA (`FAKE_CUDA_PLANT`): each must be found, and as what it is.

use crate::common::fixture;
use crate::stand_in::{self, Ran};

/// A case of two blocks and a ragged third, columns reordered, a dead channel, streams that differ; or a decoding.
#[derive(Clone, Copy)]
enum Run {
    Case,
    Decode,
}
use Run::{Case, Decode};

/// What was changed (see plant.cpp; arguments of kernels are numbered), and what must be said of it.
const FAULTS: &[(Run, &str, &str)] = &[
    // Products: operations, dimensions, leading dimensions, operands, scalars.
    (Case, "cublasSgemm_v2:1:op_a^1", "first failing stage: drift, trace.p_matrix"),
    (Case, "cublasSgemm_v2:1:op_b^1", "first failing stage: drift, trace.p_matrix"),
    (Case, "cublasSgemm_v2:1:m-1", "the score has a value that is not finite"),
    (Case, "cublasSgemm_v2:1:n-1", "the score has a value that is not finite"),
    (Case, "cublasSgemm_v2:1:lda+1", "cublasSgemm: A needs bytes"),
    (Case, "cublasSgemm_v2:1:ldb+1", "cublasSgemm: B needs bytes"),
    (Case, "cublasSgemm_v2:1:ldc+1", "cublasSgemm: C needs bytes"),
    (Case, "cublasSgemm_v2:1:lda-1", "A has 40 rows and leading dimension 39"),
    (Case, "cublasSgemm_v2:1:a~b", "first failing stage: drift, trace.p_matrix"),
    (Case, "cublasSgemm_v2:1:a+4", "cublasSgemm: A needs bytes"),
    (Case, "cublasSgemm_v2:1:c~a", "the score has a value that is not finite"),
    (Case, "cublasSgemm_v2:1:c+4", "cublasSgemm: C needs bytes"),
    (Case, "cublasSgemm_v2:2:alpha~beta", "first failing stage: drift, trace.p_matrix"),
    (Case, "cublasSgemm_v2:4:n-1", ""),
    (Case, "cublasSgemm_v2:4:k-1", "first failing stage: score, trace.score"),
    (Case, "cublasSgemm_v2:4:skip", "first failing stage: score, trace.score"),
    // The triangular solve and the factor.
    (Case, "cublasStrsm_v2:1:uplo^1", "first failing stage: factor, trace.hinv_chol"),
    (Case, "cublasStrsm_v2:1:op^1", "first failing stage: factor, trace.hinv_chol"),
    (Case, "cublasStrsm_v2:1:diagonal^1", "the pruned weight has a value that is not finite"),
    (Case, "cublasStrsm_v2:1:n-1", "first failing stage: factor, trace.hinv_chol"),
    (Case, "cublasStrsm_v2:1:lda+1", "cublasStrsm: A needs bytes"),
    (Case, "cublasStrsm_v2:1:a~b", "first failing stage: factor, trace.hinv_chol"),
    (Case, "cusolverDnSpotrf:1:uplo^1", "the pruned weight has a value that is not finite"),
    (Case, "cusolverDnSpotrf:1:n-1", "first failing stage: factor, trace.hinv_chol"),
    (Case, "cusolverDnSpotrf:1:size-1", "a work space of 1286 numbers, and 1287 are needed"),
    (Case, "cusolverDnSpotrf:1:work~a", "cusolverDnSpotrf: A needs bytes"),
    (Case, "cusolverDnSpotrf:1:skip", "cusolverDnSpotrf failed on the device: parameter 1 is wrong"),
    // Streams and synchronisations.
    (Case, "cublasSetStream_v2:1:skip", "was freed before"),
    (Case, "cusolverDnSetStream:1:skip", "was written on another stream, and nothing orders the two"),
    (Case, "cuMemAllocAsync:5:stream=0", "not allocated yet in the order of the streams"),
    (Case, "cuMemFreeAsync:5:stream=0", "was written on another stream, and nothing orders the two"),
    (Case, "cuMemsetD8Async:3:stream=0", "the score has a value that is not finite"),
    (Case, "cuMemcpyHtoDAsync_v2:1:stream=0", "the target of a copy"),
    (Case, "cuMemcpyDtoHAsync_v2:1:stream=0", "the source of a copy"),
    (Case, "hessian_f32:1:stream=0", "hessian_f32: argument 0"),
    (Case, "score:1:stream=0", "score: argument 0"),
    (Case, "cuStreamSynchronize:0:skip", ""),
    (Case, "cuEventSynchronize:0:skip", "the score has a value that is not finite"),
    (Case, "cuEventRecord:0:skip", "the score has a value that is not finite"),
    (Decode, "cuStreamSynchronize:7:skip", ""),
    (Decode, "cuEventRecord:0:stream=0", "block 0 thread 103: out of bounds: reads 4 bytes at spmspv.cu:84"),
    (Decode, "skip_f16:5:stream=0", "argument 0 of skip_f16 was freed before (1088 bytes)"),
    // Memory: sizes, what is in it, how long it lives.
    (Case, "cuMemAllocAsync:20:bytes-4", "out of bounds"),
    (Case, "cuMemAllocAsync:20:bytes*-1", "18446744073709545216 bytes are more than there are addresses"), // a size that overflowed
    (Case, "cuMemsetD8Async:1:skip", "the score has a value that is not finite"),
    (Case, "cuMemsetD8Async:1:bytes-4", "the score has a value that is not finite"),
    (Case, "cuMemcpyHtoDAsync_v2:1:skip", "the score has a value that is not finite"),
    (Case, "cuMemcpyHtoDAsync_v2:1:bytes-4", "the score has a value that is not finite"),
    (
        Case,
        "cuMemcpyHtoDAsync_v2:1:to+4",
        "the target of a copy needs bytes 4 to 6404 of an allocation of 6400",
    ),
    (Case, "cuMemcpyDtoHAsync_v2:1:bytes-4", "first failing stage: statistics, stats.hessian"),
    (Case, "permute_both:1:1!", "was freed before"),
    (Decode, "skip_f16:9:2!", "was freed before"),
    (Case, "cuMemFreeAsync:5:skip", "left 1 allocations"),
    (Case, "cuMemFreeHost:1:skip", "left 1 pinned"),
    (Case, "cuModuleUnload:1:skip", "left 1 modules"),
    (Case, "cuEventDestroy_v2:1:skip", "left 1 events"),
    (Case, "cuStreamDestroy_v2:1:skip", "left 1 streams"),
    (Case, "cublasDestroy_v2:1:skip", "left 1 blas"),
    (Case, "cusolverDnDestroy:1:skip", "left 1 solvers"),
    (Case, "cuDevicePrimaryCtxRelease_v2:1:skip", "left 1 contexts"),
    // Launches: chunks, grids, the order and the values of arguments.
    (Case, "hessian_f32:1:5-1", "first failing stage: statistics, stats.hessian"),
    (Case, "hessian_f32:1:1~2", "out of bounds"),
    (Case, "hessian_f32:1:skip", "first failing stage: statistics, stats.hessian"),
    (Case, "drift_f32:1:grid.x-1", "first failing stage: statistics, stats.dxxt"),
    (Case, "drift_f32:1:6*2", "out of bounds"),
    (Case, "split_f32:2:9-1", "first failing stage: statistics, stats.hessian"),
    (Case, "add_squares:1:3-1", "first failing stage: statistics, stats.dxdxt"),
    (Case, "get_diagonal:1:2-1", "the factor has a value that is not finite"),
    (Case, "set_diagonal:1:2-1", "the Hessian is not positive definite"),
    (Case, "permute_both:1:4=0", "first failing stage: factor, trace.hinv_chol"),
    (Case, "reverse_upper:1:0~1", "the pruned weight has a value that is not finite"),
    (Case, "reverse_upper:1:2+1", "out of bounds"),
    (Case, "strictly_upper:1:5=0", "first failing stage: score, trace.score"),
    (Case, "score:2:3+1", "out of bounds"),
    (Case, "panel_32:2:9+1", "out of bounds"),
    (Case, "panel_32:1:11=0", "first failing stage: score, trace.score"),
    (Case, "panel_32:1:grid.x-1", "the pruned weight has a value that is not finite"),
    (Case, "permute_columns_f32:1:skip", "the pruned weight has a value that is not finite"),
    (Decode, "skip_f16:3:grid.x-1", ""),
    (Decode, "skip_f16:3:7-1", ""),
    // Contexts and devices.
    (Case, "cuCtxSetCurrent:0:skip", "no context is current on this thread"),
    (Case, "cuDeviceGet:1:ordinal+1", "device 1; there is one, number 0"),
];

fn run(run: Run, settings: &[(&str, &str)]) -> Ran {
    match run {
        Case => {
            let case = fixture("vectors/v1/duogpt/act-order");
            stand_in::duogpt(&["verify", "--backend", "cuda", "--vectors", case.to_str().unwrap()], settings)
        }
        Decode => {
            let model = fixture("architectures/mistral");
            let arguments = ["generate", "--backend", "cuda", "--model", model.to_str().unwrap()];
            let prompt = ["--prompt-tokens", "1,2", "--max-tokens", "4", "--activation-sparsity", "0.5"];
            stand_in::duogpt(&[arguments.as_slice(), &prompt].concat(), settings)
        }
    }
}

/// All that a run has said, to anyone.
fn said(ran: &Ran) -> String {
    let mut said = String::from_utf8_lossy(&ran.output.stdout).into_owned() + &ran.errors();
    // After a signal there is no bill.
    if !ran.bill.is_null() {
        said.extend(ran.left().iter().map(|left| format!("left {left}\n")));
    }
    said
}

pub fn each_planted_fault_is_found() {
    let [text, _] = [Decode, Case].map(|which| run(which, &[]).well().output.stdout);
    let mut unnoticed = Vec::new();
    for &(which, plant, finding) in FAULTS {
        let ran = run(which, &[("FAKE_CUDA_PLANT", plant)]);
        let said = said(&ran);
        assert!(said.contains("fake CUDA: planted"), "{plant}: there is no such call");
        let other_text = matches!(which, Decode) && ran.output.stdout != text;
        let found = !ran.output.status.success()
            || ran.bill.is_null()
            || ran.bill["broken"] != ""
            || !ran.left().is_empty()
            || other_text;
        if !found || !said.contains(finding) {
            unnoticed.push(format!("{plant}, expected `{finding}`:\n{said}"));
        }
    }
    assert!(unnoticed.is_empty(), "{} of {}:\n{}", unnoticed.len(), FAULTS.len(), unnoticed.join("\n"));
}

/// Machine code of another source, kept under the name of today's: nothing but a comparison can tell.
pub fn stale_machine_code_is_found() {
    let cache = tempfile::tempdir().unwrap();
    let kept = ("XDG_CACHE_HOME", cache.path().to_str().unwrap());
    let older = ("FAKE_CUDA_PLANT", "source:0:square * scale[column]=>square * scale[0]");
    for settings in [&[kept, older][..], &[kept]] {
        let ran = run(Case, settings);
        assert_eq!(ran.output.status.code(), Some(1));
        assert!(said(&ran).contains("first failing stage: score, trace.score"), "{}", said(&ran));
    }
    assert_eq!(run(Case, &[kept]).calls("nvrtcCompileProgram"), 0);
}
