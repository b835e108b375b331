//! Statistics of the calibration data on the device; see [`reference::statistics`].

use std::cell::Cell;
use std::ops::Range;

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, s};

use super::blas::{Rows, gemm};
use super::device::{Argument, Buffer, Device, Launch, Plain};
use super::kernel_files::STATISTICS;
use super::launch::{THREADS, launch, number};
use crate::device_error::DeviceError;
use crate::reference;

/// Which version of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatisticsVersion {
    /// Products in f32.
    Plain,
    /// Products of 16-bit splits on tensor cores.
    TensorCores,
}

/// The largest number of tokens that are buffered on the device before they are multiplied. Each multiplication reads and
/// writes all of H and dX X^T, so more tokens are faster; their splits take 6 (bf16 and f16) or 12 bytes (f32) times k per
/// token.
pub const CAPACITY: usize = 8192;

/// Rows and columns of a tile; with [`CHUNK`], the sizes that splits are padded to, as in `kernels/statistics.cu`.
const TILE: usize = 128;
/// Tokens of a chunk.
const CHUNK: usize = 32;

/// Sums over the calibration tokens, in the original column order; divided by the number of sequences they are the
/// reference's running means.
pub struct Statistics<D: Device> {
    /// Input channels.
    pub k: usize,
    /// Sequences seen.
    pub sequences: usize,
    version: StatisticsVersion,
    capacity: usize,
    hessian: Sum<D>,
    residual: Option<(Sum<D>, Sum<D>)>,
    pending: Option<Pending<D>>,
}

/// The means of the statistics of dX = X~ - X^.
pub struct ResidualStatistics<D: Device> {
    /// dX X^T (k x k).
    pub dxxt: Buffer<f32, D>,
    /// diag(dX dX^T) (k).
    pub square_norms: Buffer<f32, D>,
}

/// A double-float sum (rows x columns): the number is high + low, updated by TwoSum.
struct Sum<D: Device> {
    high: Buffer<f32, D>,
    low: Buffer<f32, D>,
    shape: (usize, usize),
}

impl<D: Device> Sum<D> {
    fn new(device: &D, shape: (usize, usize)) -> Result<Self, DeviceError> {
        let zeros = || Buffer::zeros(device, shape.0 * shape.1);
        Ok(Sum { high: zeros()?, low: zeros()?, shape })
    }

    /// The sum divided by max(`count`, 1). Of a symmetric sum the part right of the diagonal is not read.
    fn mean(&self, device: &D, count: usize, symmetric: bool) -> Result<Buffer<f32, D>, DeviceError> {
        let (rows, columns) = self.shape;
        let out = Buffer::new(device, rows * columns)?;
        let arguments = vec![
            self.high.argument(device),
            self.low.argument(device),
            out.argument(device),
            number(rows).into(),
            number(columns).into(),
            (count.max(1) as f32).into(),
            u32::from(symmetric).into(),
        ];
        launch(device, &STATISTICS, "mean", rows * columns, 1, arguments)?;
        Ok(out)
    }
}

/// The narrowest type of the inputs, which determines their splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Every value is a bf16: one split for X^, two for dX, both exact.
    Bf16,
    /// Every value is an f16 of at most half the largest, so that differences are in range: splits as for bf16.
    F16,
    /// Other values: three bf16 splits for X^ and for dX.
    F32,
}

impl Inputs {
    /// The narrowest type that holds every value of the inputs exactly. NaN and infinities need f32.
    pub fn of(inputs: &[ArrayView2<f32>]) -> Self {
        let all = |holds: fn(f32) -> bool| inputs.iter().all(|x| x.iter().all(|&x| holds(x)));
        if all(|x| x.is_finite() && bf16::from_f32(x).to_f32() == x) {
            Inputs::Bf16
        } else if all(|x| x.abs() <= f16::MAX.to_f32() / 2.0 && f16::from_f32(x).to_f32() == x) {
            Inputs::F16
        } else {
            Inputs::F32
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Inputs::Bf16 => "bf16",
            Inputs::F16 => "f16",
            Inputs::F32 => "f32",
        }
    }

    /// Number of splits of X^ and of dX.
    fn splits(self) -> (usize, usize) {
        match self {
            Inputs::Bf16 | Inputs::F16 => (1, 2),
            Inputs::F32 => (3, 3),
        }
    }

    /// Tokens of a slab.
    fn slab(self) -> usize {
        match self {
            Inputs::Bf16 | Inputs::F16 => 32,
            Inputs::F32 => 16,
        }
    }
}

/// A number type of inputs.
pub trait Entry: Plain {
    /// The inputs of this type.
    const INPUTS: Inputs;
    /// The nearest number of this type.
    fn nearest(x: f32) -> Self;
}
impl Entry for bf16 {
    const INPUTS: Inputs = Inputs::Bf16;
    fn nearest(x: f32) -> Self {
        bf16::from_f32(x)
    }
}
impl Entry for f16 {
    const INPUTS: Inputs = Inputs::F16;
    fn nearest(x: f32) -> Self {
        f16::from_f32(x)
    }
}
impl Entry for f32 {
    const INPUTS: Inputs = Inputs::F32;
    fn nearest(x: f32) -> Self {
        x
    }
}

/// Splits of the buffered tokens, which are not multiplied yet.
struct Pending<D: Device> {
    inputs: Inputs,
    /// Buffered tokens.
    tokens: Cell<usize>,
    /// Splits of X^: split x capacity x padded k.
    x: Buffer<u16, D>,
    /// Splits of dX; empty without the statistics of dX.
    dx: Buffer<u16, D>,
}

impl<D: Device> Statistics<D> {
    /// No sequences yet, for k input channels.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(device: &D, k: usize, with_residual: bool) -> Result<Self, DeviceError> {
        Self::of_version(device, k, with_residual, StatisticsVersion::TensorCores, CAPACITY)
    }

    /// The same with a version of the kernels, and with another buffer of `capacity` tokens, a multiple of 32.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// If `capacity` is not a positive multiple of 32.
    pub fn of_version(
        device: &D,
        k: usize,
        with_residual: bool,
        version: StatisticsVersion,
        capacity: usize,
    ) -> Result<Self, DeviceError> {
        assert!(capacity > 0 && capacity.is_multiple_of(CHUNK), "a capacity of {capacity} tokens");
        let residual = match with_residual {
            true => Some((Sum::new(device, (k, k))?, Sum::new(device, (1, k))?)),
            false => None,
        };
        let hessian = Sum::new(device, (k, k))?;
        Ok(Statistics { k, sequences: 0, version, capacity, hessian, residual, pending: None })
    }

    /// Takes one sequence in, dense and sparse input (tokens x k). [`Inputs::of`] finds their type, which
    /// decides how they are multiplied; the result is as accurate as f32 products.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// When the shapes differ from each other or from k.
    pub fn update(
        &mut self,
        device: &D,
        dense: ArrayView2<f32>,
        sparse: ArrayView2<f32>,
    ) -> Result<(), DeviceError> {
        assert_eq!((dense.dim(), sparse.ncols()), (sparse.dim(), self.k), "inputs of another shape");
        match self.version {
            StatisticsVersion::Plain => self.take_plainly(device, dense, sparse)?,
            StatisticsVersion::TensorCores => {
                let inputs = match &self.residual {
                    Some(_) => Inputs::of(&[dense, sparse]),
                    None => Inputs::of(&[sparse]),
                };
                match inputs {
                    Inputs::Bf16 => self.upload_and_append::<bf16>(device, dense, sparse)?,
                    Inputs::F16 => self.upload_and_append::<f16>(device, dense, sparse)?,
                    Inputs::F32 => self.upload_and_append::<f32>(device, dense, sparse)?,
                }
            }
        }
        self.sequences += 1;
        Ok(())
    }

    /// Takes one sequence in whose inputs are on the device. An f16 sequence whose differences overflow gives statistics that are
    /// not finite, which [`prepare`](super::factor::prepare) refuses.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// If the inputs differ in size or do not consist of rows of k.
    pub fn update_on_device<T: Entry>(
        &mut self,
        device: &D,
        dense: &Buffer<T, D>,
        sparse: &Buffer<T, D>,
    ) -> Result<(), DeviceError> {
        self.append(device, Some(dense), sparse)?;
        self.sequences += 1;
        Ok(())
    }

    /// The same means on the host.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn to_host(&self, device: &D) -> Result<reference::Statistics<f32>, DeviceError> {
        let k = self.k;
        let square = |buffer: Buffer<f32, D>| {
            let values = buffer.to_host(device)?;
            Ok(Array2::from_shape_vec((k, k), values).expect("k x k"))
        };
        let hessian = square(self.hessian(device)?)?;
        let residual = match self.residual(device)? {
            Some(ResidualStatistics { dxxt, square_norms }) => Some(reference::ResidualStatistics {
                dxxt: square(dxxt)?,
                square_norms: square_norms.to_host(device)?.into(),
            }),
            None => None,
        };
        Ok(reference::Statistics { sequences: self.sequences, hessian, residual })
    }

    /// H (k x k), the mean over the sequences.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn hessian(&self, device: &D) -> Result<Buffer<f32, D>, DeviceError> {
        self.flush(device)?;
        self.hessian.mean(device, self.sequences, true)
    }

    /// The statistics of dX, if they were requested: means over the sequences.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn residual(&self, device: &D) -> Result<Option<ResidualStatistics<D>>, DeviceError> {
        self.flush(device)?;
        let Some((dxxt, square_norms)) = &self.residual else { return Ok(None) };
        let mean = |sum: &Sum<D>| sum.mean(device, self.sequences, false);
        Ok(Some(ResidualStatistics { dxxt: mean(dxxt)?, square_norms: mean(square_norms)? }))
    }

    /// Multiplies the buffered tokens.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn flush(&self, device: &D) -> Result<(), DeviceError> {
        self.pending.as_ref().map_or(Ok(()), |pending| self.multiply(device, pending))
    }

    /// Version 1.
    fn take_plainly(
        &self,
        device: &D,
        dense: ArrayView2<f32>,
        sparse: ArrayView2<f32>,
    ) -> Result<(), DeviceError> {
        let k = self.k;
        let rows = |x: &_| Rows::new(device, x, 0, k);
        for first in (0..sparse.nrows()).step_by(self.capacity) {
            let tokens = self.capacity.min(sparse.nrows() - first);
            let run = s![first..first + tokens, ..];
            let sparse = upload(device, sparse.slice(run), |x| x)?;
            let shape = (k, k, tokens);
            gemm(device, shape, 1.0, rows(&sparse).t(), rows(&sparse), 1.0, rows(&self.hessian.high))?;
            let Some((dxxt, square_norms)) = &self.residual else { continue };
            let dense = upload(device, dense.slice(run), |x| x)?;
            let dx = Buffer::new(device, tokens * k)?;
            let mut arguments = vec![dense.argument(device), sparse.argument(device), dx.argument(device)];
            arguments.extend([number(tokens), number(k)].map(Argument::from));
            launch(device, &STATISTICS, "difference", tokens * k, 1, arguments)?;
            gemm(device, shape, 1.0, rows(&dx).t(), rows(&sparse), 1.0, rows(&dxxt.high))?;
            let mut arguments = vec![dx.argument(device), square_norms.high.argument(device)];
            arguments.extend([number(tokens), number(k)].map(Argument::from));
            launch(device, &STATISTICS, "column_squares", k, 1, arguments)?;
        }
        Ok(())
    }

    /// Version 2, a part of the sequence at a time.
    fn upload_and_append<T: Entry>(
        &mut self,
        device: &D,
        dense: ArrayView2<f32>,
        sparse: ArrayView2<f32>,
    ) -> Result<(), DeviceError> {
        for first in (0..sparse.nrows()).step_by(self.capacity) {
            let run = s![first..(first + self.capacity).min(sparse.nrows()), ..];
            let dense = match &self.residual {
                Some(_) => Some(upload(device, dense.slice(run), T::nearest)?),
                None => None,
            };
            let sparse = upload(device, sparse.slice(run), T::nearest)?;
            self.append(device, dense.as_ref(), &sparse)?;
        }
        Ok(())
    }

    /// Splits tokens into the buffer, and multiplies whenever it is full.
    fn append<T: Entry>(
        &mut self,
        device: &D,
        dense: Option<&Buffer<T, D>>,
        sparse: &Buffer<T, D>,
    ) -> Result<(), DeviceError> {
        let dense = dense.filter(|_| self.residual.is_some());
        let tokens = sparse.len() / self.k.max(1);
        let sizes = (sparse.len(), dense.map_or(sparse.len(), Buffer::len));
        assert_eq!(sizes, (tokens * self.k, tokens * self.k), "inputs of another shape");
        let pending = match self.pending.take() {
            Some(pending) if pending.inputs == T::INPUTS => pending,
            others => {
                if let Some(others) = others {
                    self.multiply(device, &others)?;
                }
                let splits = |count| Buffer::new(device, count * self.capacity * self.stride());
                let (x, dx) = T::INPUTS.splits();
                let dx = if self.residual.is_some() { dx } else { 0 };
                Pending { inputs: T::INPUTS, tokens: Cell::new(0), x: splits(x)?, dx: splits(dx)? }
            }
        };
        let mut first = 0;
        while first < tokens {
            let end = tokens.min(first + self.capacity - pending.tokens.get());
            self.split(device, &pending, dense, sparse, first..end)?;
            if pending.tokens.get() == self.capacity {
                self.multiply(device, &pending)?;
            }
            first = end;
        }
        self.pending = Some(pending);
        Ok(())
    }

    /// Appends the splits of some tokens of the inputs, and adds their dX to diag(dX dX^T).
    fn split<T: Entry>(
        &self,
        device: &D,
        pending: &Pending<D>,
        dense: Option<&Buffer<T, D>>,
        sparse: &Buffer<T, D>,
        tokens: Range<usize>,
    ) -> Result<(), DeviceError> {
        let (k, first) = (self.k, pending.tokens.get());
        let after = first + tokens.len();
        let chunks = (after.next_multiple_of(CHUNK) - first).div_ceil(CHUNK);
        let squares = Buffer::<f32, D>::new(device, if dense.is_some() { chunks * k } else { 0 })?;
        let at = |x: &Buffer<T, D>| Argument::Address(x.address(device, tokens.start * k));
        let arguments = vec![
            dense.map_or(Argument::Address(0), at), // no dX
            at(sparse),
            pending.x.argument(device),
            pending.dx.argument(device),
            squares.argument(device),
            number(tokens.len()).into(),
            number(k).into(),
            number(self.stride()).into(),
            number(self.capacity).into(),
            number(first).into(),
        ];
        if k > 0 {
            let kernel = format!("split_{}", T::INPUTS.suffix());
            let grid = (number(self.stride() / 32), number(chunks));
            device.launch(&Launch { file: &STATISTICS, kernel: &kernel, grid, block: THREADS, arguments })?;
        }
        if let (Some(_), Some((_, square_norms))) = (dense, &self.residual) {
            let mut arguments = vec![
                squares.argument(device),
                square_norms.high.argument(device),
                square_norms.low.argument(device),
            ];
            arguments.extend([number(chunks), number(k)].map(Argument::from));
            launch(device, &STATISTICS, "add_squares", k, 1, arguments)?;
        }
        pending.tokens.set(after);
        Ok(())
    }

    /// Adds the buffered tokens to H and dX X^T.
    fn multiply(&self, device: &D, pending: &Pending<D>) -> Result<(), DeviceError> {
        const EIGHT: usize = 8; // numbers per 16-byte copy
        let tokens = pending.tokens.replace(0);
        let tiles = number(self.stride() / TILE);
        if tokens == 0 || tiles == 0 {
            return Ok(());
        }
        let multiply = |product: &str, a: &Buffer<u16, D>, sum: &Sum<D>| {
            let kernel = format!("{product}_{}", pending.inputs.suffix());
            let mut arguments = vec![
                a.argument(device),
                pending.x.argument(device),
                sum.high.argument(device),
                sum.low.argument(device),
            ];
            let row = self.stride() / EIGHT;
            let slabs = tokens.div_ceil(pending.inputs.slab());
            arguments.extend([self.k, row, self.capacity * row, slabs].map(|x| Argument::U32(number(x))));
            let grid = (tiles, tiles);
            device.launch(&Launch { file: &STATISTICS, kernel: &kernel, grid, block: THREADS, arguments })
        };
        multiply("hessian", &pending.x, &self.hessian)?;
        match &self.residual {
            Some((dxxt, _)) => multiply("drift", &pending.dx, dxxt),
            None => Ok(()),
        }
    }

    /// Numbers from one row of splits to the next.
    fn stride(&self) -> usize {
        self.k.next_multiple_of(TILE)
    }
}

/// A copy on the device, row-major, of another type.
fn upload<T: Plain, D: Device>(
    device: &D,
    x: ArrayView2<f32>,
    narrow: fn(f32) -> T,
) -> Result<Buffer<T, D>, DeviceError> {
    Buffer::from_host(device, &x.iter().map(|&x| narrow(x)).collect::<Vec<_>>())
}
