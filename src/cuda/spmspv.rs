//! y = W (x * mask) on the device, over each storage format; see [`reference::spmspv`](crate::reference::spmspv).
//!
//! A product reads the list of columns that [`Selected::select`] left on the device: between the activations of a linear and
//! its output nothing waits for the host. Several matrices with one x (q, k and v; gate and up) are one product when their
//! rows are stacked.

use super::activation::ActivationType;
use super::device::{Argument, Buffer, Device, Launch};
use super::kernel_files::SPMSPV;
use super::launch::{THREADS, number};
use super::select::Selected;
use crate::device_error::DeviceError;
use crate::reference::spmspv::{self, Format, TILE, Value};

/// A type of stored weights.
pub trait Element: Value + ActivationType {}
impl<T: Value + ActivationType> Element for T {}

/// Blocks of a launch: the four that each of an H200's 132 SMs holds at once. A smaller device, such as an A100 with 108 SMs, takes
/// the last of them when others have ended. The number is the same for every device, so that the order of a sum, and with it the
/// bits of y, depend on the shape alone.
const BLOCKS: usize = 528;

/// The smallest number of columns per block: four for each of its warps.
const FEWEST_COLUMNS: usize = 32;

/// Scratch memory for partial sums, shared by all products of a device, which run one after the other.
pub struct Scratch<D: Device> {
    partial: Buffer<f32, D>,
    /// Number of finished shares of each tile; zero between products.
    arrived: Buffer<u32, D>,
}

impl<D: Device> Scratch<D> {
    /// Half a megabyte, enough for every shape.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(device: &D) -> Result<Self, DeviceError> {
        Ok(Scratch { partial: Buffer::new(device, BLOCKS * TILE)?, arrived: Buffer::zeros(device, BLOCKS)? })
    }
}

/// Number of blocks that share the active columns of a tile.
fn shares(n: usize, k: usize) -> usize {
    (BLOCKS / n.div_ceil(TILE)).clamp(1, k.div_ceil(FEWEST_COLUMNS).max(1))
}

/// A weight (n x k) on a device, in one of the formats.
pub trait Weight<T: Element, D: Device>: Sized {
    /// The format it comes from.
    type Host: Format<T>;

    /// Copies a weight to the device.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// When it has 2^32 values or more: kernels count in 32 bits.
    fn new(device: &D, weight: &Self::Host) -> Result<Self, DeviceError>;

    /// (n, k).
    fn dim(&self) -> (usize, usize);

    /// The suffix of its kernels.
    const KERNEL: &'static str;

    /// The kernels' arguments for it.
    fn arguments(&self, device: &D) -> Vec<Argument>;

    /// y (n) = the sum over the selected columns of W_ij x_j, in f32. Bit-identical in every run.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// When shapes do not fit.
    fn product<X: ActivationType>(
        &self,
        device: &D,
        x: &Selected<X, D>,
        scratch: &Scratch<D>,
        y: &Buffer<f32, D>,
    ) -> Result<(), DeviceError> {
        assert_eq!(x.columns.len(), self.dim().1, "a selection of another length");
        let mut arguments = self.arguments(device);
        arguments.extend([x.columns.argument(device), x.x.argument(device), x.count.argument(device)]);
        run(device, &format!("{}_{}", Self::KERNEL, T::SUFFIX), self.dim(), arguments, scratch, y, &[])
    }
}

/// Launches a product: `first`, y and scratch, n, `last`.
fn run<D: Device>(
    device: &D,
    kernel: &str,
    (n, k): (usize, usize),
    first: Vec<Argument>,
    scratch: &Scratch<D>,
    y: &Buffer<f32, D>,
    last: &[Argument],
) -> Result<(), DeviceError> {
    assert_eq!(y.len(), n, "an output of another length");
    if n == 0 {
        return Ok(());
    }
    let mut arguments = first;
    arguments.extend([y, &scratch.partial].map(|buffer| buffer.argument(device)));
    arguments.extend([scratch.arrived.argument(device), number(n).into()]);
    arguments.extend(last);
    let grid = (number(n.div_ceil(TILE)), number(shares(n, k)));
    device.launch(&Launch { file: &SPMSPV, kernel, grid, block: THREADS, arguments })
}

fn upload<T: ActivationType, D: Device>(device: &D, values: &[T]) -> Result<Buffer<T, D>, DeviceError> {
    number(values.len());
    Buffer::from_host(device, values)
}

/// [`spmspv::Dense`] on a device: columns that are not selected are not read.
pub struct Dense<T, D: Device> {
    dim: (usize, usize),
    values: Buffer<T, D>,
}

impl<T: Element, D: Device> Weight<T, D> for Dense<T, D> {
    type Host = spmspv::Dense<T>;

    fn new(device: &D, weight: &Self::Host) -> Result<Self, DeviceError> {
        Ok(Dense { dim: weight.dim(), values: upload(device, weight.values())? })
    }

    fn dim(&self) -> (usize, usize) {
        self.dim
    }

    const KERNEL: &'static str = "skip";

    fn arguments(&self, device: &D) -> Vec<Argument> {
        vec![self.values.argument(device)]
    }
}

impl<T: Element, D: Device> Dense<T, D> {
    /// The address of the first column, for library calls.
    pub fn address(&self, device: &D) -> u64 {
        self.values.address(device, 0)
    }

    /// y (n) = W x for all of x (k), in f32: the dense baseline.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn gemv(
        &self,
        device: &D,
        x: &Buffer<f32, D>,
        scratch: &Scratch<D>,
        y: &Buffer<f32, D>,
    ) -> Result<(), DeviceError> {
        assert_eq!(x.len(), self.dim.1, "activations of another length");
        let arguments = vec![self.values.argument(device), x.argument(device)];
        let kernel = format!("gemv_{}", T::SUFFIX);
        run(device, &kernel, self.dim, arguments, scratch, y, &[number(self.dim.1).into()])
    }
}

/// [`spmspv::TileIndex`] on a device.
pub struct Index<T, D: Device> {
    dim: (usize, usize),
    values: Buffer<T, D>,
    rows: Buffer<u8, D>,
    offsets: Buffer<u32, D>,
}

impl<T: Element, D: Device> Weight<T, D> for Index<T, D> {
    type Host = spmspv::TileIndex<T>;

    fn new(device: &D, weight: &Self::Host) -> Result<Self, DeviceError> {
        Ok(Index {
            dim: weight.dim(),
            values: upload(device, weight.values())?,
            rows: Buffer::from_host(device, weight.rows())?,
            offsets: Buffer::from_host(device, weight.segments().offsets())?,
        })
    }

    fn dim(&self) -> (usize, usize) {
        self.dim
    }

    const KERNEL: &'static str = "index";

    fn arguments(&self, device: &D) -> Vec<Argument> {
        vec![self.values.argument(device), self.rows.argument(device), self.offsets.argument(device)]
    }
}

/// [`spmspv::TileBitmap`] on a device.
pub struct Bitmap<T, D: Device> {
    dim: (usize, usize),
    values: Buffer<T, D>,
    bitmap: Buffer<u32, D>,
    prefix: Buffer<u8, D>,
    offsets: Buffer<u32, D>,
}

impl<T: Element, D: Device> Weight<T, D> for Bitmap<T, D> {
    type Host = spmspv::TileBitmap<T>;

    fn new(device: &D, weight: &Self::Host) -> Result<Self, DeviceError> {
        Ok(Bitmap {
            dim: weight.dim(),
            values: upload(device, weight.values())?,
            bitmap: Buffer::from_host(device, weight.bitmap().as_flattened())?,
            prefix: Buffer::from_host(device, weight.prefix().as_flattened())?,
            offsets: Buffer::from_host(device, weight.segments().offsets())?,
        })
    }

    fn dim(&self) -> (usize, usize) {
        self.dim
    }

    const KERNEL: &'static str = "bitmap";

    fn arguments(&self, device: &D) -> Vec<Argument> {
        vec![
            self.values.argument(device),
            self.bitmap.argument(device),
            self.prefix.argument(device),
            self.offsets.argument(device),
        ]
    }
}
