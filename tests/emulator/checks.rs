//! The emulator finds what it is there to find, and names thread and line.

use duogpt::cuda::KernelFile;
use duogpt::cuda::device::{Argument, Buffer, Device, DeviceError, Launch};

use crate::emulator::Emulator;

static PLANTED: KernelFile = KernelFile {
    name: "planted.cu",
    // The tests below name lines: the first is the one with `typedef`.
    source: r#"typedef float Row[64];
extern "C" __global__ void neighbours(float *x, u32 barrier) {
    SHARED(Row, row);
    row[threadIdx.x] = threadIdx.x;
    if (barrier) __syncthreads();
    x[threadIdx.x] = row[(threadIdx.x + 1) % 64];
}
extern "C" __global__ void same_word(float *x) {
    x[threadIdx.x / 2] = threadIdx.x;
}
extern "C" __global__ void across_blocks(float *x) {
    x[threadIdx.x] = blockIdx.x;
}
extern "C" __global__ void too_far(float *x, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) x[i] = i;
}
extern "C" __global__ void too_early(float *x) {
    float before = *(x - 1);
    x[0] = before;
}
extern "C" __global__ void never_written(float *x) {
    SHARED(Row, row);
    if (threadIdx.x != 5) row[threadIdx.x] = 1.0f;
    __syncthreads();
    x[threadIdx.x] = row[threadIdx.x];
}
extern "C" __global__ void shared_too_far(float *x) {
    SHARED(Row, row);
    row[threadIdx.x + 1] = 1.0f;
    x[threadIdx.x] = 0.0f;
}
extern "C" __global__ void divergent_shuffle(float *x) {
    float value = threadIdx.x;
    if (threadIdx.x % 32 < 16)
        value = __shfl_sync(0xffffffffu, value, 0);
    else
        value = __shfl_sync(0xffffffffu, value, 1);
    x[threadIdx.x] = value;
}
extern "C" __global__ void mask_without_me(float *x) {
    x[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0);
}
extern "C" __global__ void lane_gone(float *x) {
    if (threadIdx.x == 3) return;
    x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
extern "C" __global__ void half_a_barrier(float *x) {
    if (threadIdx.x < 32) __syncthreads();
    else x[__shfl_sync(0xffffffffu, threadIdx.x, 0)] = 1.0f;
    if (threadIdx.x >= 32) __syncthreads();
}
extern "C" __global__ void waits_for_ever(float *x) {
    if (threadIdx.x < 32 || threadIdx.x == 63) __syncthreads();
    else __shfl_sync(0xffffffffu, 1, 31);
    x[0] = 1.0f;
}
extern "C" __global__ void lanes_in_turn(float *x, u32 barrier) {
    typedef float Lane[32];
    SHARED(Lane, lanes);
    lanes[threadIdx.x] = threadIdx.x;
    if (barrier) __syncwarp();
    x[threadIdx.x] = lanes[31 - threadIdx.x];
}
extern "C" __global__ void counts(u32 *x, u32 atomic) {
    if (atomic) atomicAdd(x, 1u);
    else *x = *x + 1;
}
extern "C" __global__ void misaligned(float *x) {
    *(float *)((u8 *)x + 2) = 1.0f;
}
extern "C" __global__ void waits_at_a_shuffle(float *x) {
    if (threadIdx.x < 31) x[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0f, 0);
    else __syncthreads();
}
extern "C" __global__ void bytes_beside_each_other(u8 *x) {
    x[threadIdx.x] = threadIdx.x;
}
extern "C" __global__ void read_in_turn_then_written(float *x, u32 barrier) {
    typedef float Word[1];
    SHARED(Word, word);
    if (threadIdx.x == 0) word[0] = 1.0f;
    __syncwarp();
    if (threadIdx.x == 1) x[1] = word[0];
    if (barrier) __syncwarp();
    if (threadIdx.x == 2) {
        x[2] = word[0];
        word[0] = 2.0f;
    }
}
// x[0]: how many blocks are done; x[1 + b]: what block b found; the last one adds up.
extern "C" __global__ void last_block_sums(u32 *x, u32 without) {
    SHARED(u32, last);
    if (threadIdx.x == 1) x[1 + blockIdx.x] = 10 + blockIdx.x;
    if (without != 1) __syncthreads();
    if (threadIdx.x == 0) {
        if (without != 2) __threadfence();
        last = atomicAdd(x, 1u) == gridDim.x - 1;
        if (without != 3) __threadfence();
    }
    __syncthreads();
    if (!last || threadIdx.x != 2) return;
    u32 sum = 0;
    for (u32 b = 0; b < gridDim.x; b++) sum += x[1 + b];
    x[7] = sum;
}
"#,
};

fn run(kernel: &str, blocks: u32, threads: u32, len: usize, extra: Option<u32>) -> Result<Vec<u32>, String> {
    let device = Emulator::new(7);
    let x = Buffer::<u32, _>::zeros(&device, len).unwrap();
    let mut arguments = vec![x.argument(&device)];
    arguments.extend(extra.map(Argument::U32));
    match device.launch(&Launch { file: &PLANTED, kernel, grid: (blocks, 1), block: threads, arguments }) {
        Ok(()) => Ok(x.to_host(&device).unwrap()),
        Err(DeviceError::Failed { detail, .. }) => Err(detail),
        Err(error) => panic!("{error}"),
    }
}

fn refused(outcome: Result<Vec<u32>, String>, parts: &[&str]) {
    let report = outcome.expect_err("the fault was not found");
    for part in parts {
        assert!(report.contains(part), "`{part}` is not in: {report}");
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    let right = run("neighbours", 1, 64, 64, Some(1)).unwrap();
    let expected: Vec<u32> = (0..64u32).map(|i| (((i + 1) % 64) as f32).to_bits()).collect();
    assert_eq!(right, expected);
    refused(run("neighbours", 1, 64, 64, Some(0)), &["block 0 thread ", "`row`"]);
}

#[test]
fn a_race_names_both_threads_and_the_line() {
    refused(
        run("same_word", 1, 64, 64, None),
        &["race: writes", "argument 0", "which block 0 thread", "planted.cu:9"],
    );
    refused(run("across_blocks", 2, 32, 32, None), &["race: writes", "planted.cu:12"]);
}

#[test]
fn a_missing_barrier_of_a_warp_is_a_race() {
    let right = run("lanes_in_turn", 1, 32, 32, Some(1)).unwrap();
    assert_eq!(right[0], 31.0f32.to_bits());
    refused(run("lanes_in_turn", 1, 32, 32, Some(0)), &["`lanes`"]);
}

#[test]
fn atomics_do_not_race_with_each_other_and_plain_additions_do() {
    assert_eq!(run("counts", 3, 64, 1, Some(1)).unwrap(), [192]);
    refused(run("counts", 1, 64, 1, Some(0)), &["race: ", "planted.cu:67"]);
}

#[test]
fn a_read_behind_a_barrier_of_the_warp_stands_for_those_before_it() {
    let right = run("read_in_turn_then_written", 1, 32, 32, Some(1)).unwrap();
    assert_eq!(right[1..3], [1.0f32.to_bits(); 2]);
    refused(run("read_in_turn_then_written", 1, 32, 32, Some(0)), &["race: ", "shared `word`"]);
}

#[test]
fn blocks_meet_through_an_atomic_between_two_fences_only() {
    assert_eq!(run("last_block_sums", 3, 32, 8, Some(0)).unwrap()[7], 33);
    for without in 1..4 {
        refused(
            run("last_block_sums", 3, 32, 8, Some(without)),
            &["race: reads", "argument 0", "planted.cu:"],
        );
    }
}

#[test]
fn out_of_bounds_names_thread_line_and_place() {
    assert_eq!(run("too_far", 2, 32, 41, Some(40)).unwrap()[40], 40.0f32.to_bits());
    let place =
        ["block 1 thread 8", "out of bounds: writes 4 bytes", "argument 0, byte 160 of 160", "planted.cu:16"];
    refused(run("too_far", 2, 32, 40, Some(40)), &place);
    refused(run("too_early", 1, 1, 4, None), &["out of bounds: reads", "byte -4 of 16", "planted.cu:19"]);
    refused(
        run("shared_too_far", 1, 64, 64, None),
        &["out of bounds: writes", "`row`, byte 256 of 256", "planted.cu:30"],
    );
    refused(run("misaligned", 1, 1, 4, None), &["misaligned: writes 4 bytes", "planted.cu:70"]);
}

#[test]
fn shared_memory_has_to_be_written_before_it_is_read() {
    refused(
        run("never_written", 1, 64, 64, None),
        &["block 0 thread 5", "uninitialised: reads shared `row`", "planted.cu:26"],
    );
}

#[test]
fn neighbouring_bytes_are_no_race() {
    run("bytes_beside_each_other", 1, 32, 8, None).unwrap();
}

#[test]
fn shuffles_need_one_place_and_every_lane_of_the_mask() {
    refused(
        run("divergent_shuffle", 1, 64, 64, None),
        &["divergent __shfl_sync", "planted.cu:36", "planted.cu:38"],
    );
    refused(run("mask_without_me", 1, 32, 32, None), &["is not in its own mask 0000ffff", "planted.cu:42"]);
    refused(
        run("lane_gone", 1, 32, 32, None),
        &["thread 3 of the mask ffffffff has exited", "planted.cu:46"],
    );
}

#[test]
fn barriers_at_two_places_are_divergent() {
    refused(run("half_a_barrier", 1, 64, 64, None), &["planted.cu:49", "planted.cu:51"]);
}

#[test]
fn what_waits_for_ever_is_reported_with_thread_and_line() {
    let report = run("waits_for_ever", 1, 64, 64, None);
    refused(
        report,
        &["deadlock: block 0 thread 0 waits in __syncthreads at planted.cu:54", "thread 1 waits"],
    );
    let report = run("waits_at_a_shuffle", 1, 32, 32, None);
    refused(report, &["deadlock: block 0 thread 0 waits in __shfl_sync with mask ffffffff at planted.cu:73"]);
}

#[test]
fn arguments_must_be_the_kernels() {
    refused(run("same_word", 1, 32, 32, Some(1)), &["arguments"]);
    refused(run("too_far", 1, 32, 32, None), &["arguments"]);
    refused(run("no_such_kernel", 1, 32, 32, None), &["no kernel"]);
}

#[test]
fn other_seeds_run_in_other_orders_and_the_same_seed_repeats() {
    let first = |seed| {
        let device = Emulator::new(seed);
        let x = Buffer::<u32, _>::zeros(&device, 64).unwrap();
        let launch = Launch {
            file: &PLANTED,
            kernel: "same_word",
            grid: (1, 1),
            block: 64,
            arguments: vec![x.argument(&device)],
        };
        device.launch(&launch).unwrap_err().to_string()
    };
    assert_eq!(first(1), first(1));
    assert!((2..6).any(|seed| first(seed).split(" (seed").next() != first(1).split(" (seed").next()));
}

#[test]
fn library_calls_stay_inside_their_operands() {
    use duogpt::cuda::blas::{Rows, gemm};
    let device = Emulator::new(1);
    let a = Buffer::<f32, _>::zeros(&device, 12).unwrap();
    let c = Buffer::<f32, _>::zeros(&device, 9).unwrap();
    let rows = |buffer, stride| Rows::new(&device, buffer, 0, stride);
    gemm(&device, (3, 3, 4), 1.0, rows(&a, 4), rows(&a, 4).t(), 0.0, rows(&c, 3)).unwrap();
    gemm(&device, (3, 3, 4), 1.0, rows(&a, 4), rows(&a, 4).t(), 0.0, rows(&c, 4)).unwrap_err();
    gemm(&device, (4, 3, 4), 1.0, rows(&a, 4), rows(&a, 4).t(), 0.0, rows(&c, 3)).unwrap_err();
}
