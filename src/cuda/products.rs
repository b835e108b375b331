//! The products of a decoder on a device. Norms and attention run on the host: each product uploads its activations and
//! downloads its output.

use std::sync::{Mutex, PoisonError};

use ndarray::{Array2, ArrayView1, ArrayView2};

use super::device::{Buffer, Device};
use super::select::Selected;
use super::spmspv::{self, Bitmap, Dense, Element, Index, Scratch};
use crate::device_error::DeviceError;
use crate::generate::products::{Keep, Product, Products, each};
use crate::generate::weight::{Columns, Weight};

/// A device that multiplies for a [`Decoder`](crate::generate::Decoder), in f32.
pub struct DeviceProducts<'a, D: Device> {
    device: &'a D,
    /// Scratch memory of one product at a time.
    scratch: Mutex<Scratch<D>>,
}

/// A weight (n x k) on a device.
pub struct OnDevice<D: Device> {
    dim: (usize, usize),
    /// Bytes of each of the k columns, without a bitmap's prefixes.
    column_bytes: Vec<usize>,
    product: Box<LaunchProduct<D>>,
}

/// y = W x, started on the device.
type LaunchProduct<D> =
    dyn Fn(&D, &Selected<f32, D>, &Scratch<D>, &Buffer<f32, D>) -> Result<(), DeviceError> + Send + Sync;

impl<'a, D: Device> DeviceProducts<'a, D> {
    /// Products on this device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(device: &'a D) -> Result<Self, DeviceError> {
        let scratch = Mutex::new(Scratch::new(device)?);
        Ok(DeviceProducts { device, scratch })
    }
}

impl<D: Device + 'static> Products<f32> for DeviceProducts<'_, D> {
    type Weight = OnDevice<D>;

    fn describe(&self) -> String {
        self.device.describe()
    }

    fn bandwidth(&self) -> Option<f64> {
        None
    }

    fn hold(&self, weight: Weight) -> Result<OnDevice<D>, DeviceError> {
        let dim = weight.dim();
        let column_bytes = (0..dim.1 as u32).map(|j| weight.bytes_read(&[j])).collect();
        let product = match &weight {
            Weight::F32(columns) => upload(self.device, columns),
            Weight::F16(columns) => upload(self.device, columns),
            Weight::Bf16(columns) => upload(self.device, columns),
        }?;
        Ok(OnDevice { dim, column_bytes, product })
    }

    /// Multiplies token by token, in a prompt too.
    fn multiply(
        &self,
        weights: &[OnDevice<D>],
        keep: &[Keep],
        x: ArrayView2<f32>,
    ) -> Result<Vec<Product<f32>>, DeviceError> {
        let select = |keep: Keep| {
            let of_token = |token: ArrayView1<f32>| {
                let list = keep.select(&token.to_vec());
                let on_device = Selected::from_host(self.device, token.len(), &list)?;
                Ok((list, on_device))
            };
            x.outer_iter().map(of_token).collect::<Result<Vec<_>, _>>()
        };
        // Launches use it as a whole: a panic between them left nothing half done.
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        each(weights, keep, select, |weight, tokens| {
            let (n, _) = weight.dim;
            let mut product = Product { output: Array2::zeros((tokens.len(), n)), kept: 0, bytes: 0 };
            let y = Buffer::new(self.device, n)?;
            for ((list, selected), mut output) in tokens.iter().zip(product.output.outer_iter_mut()) {
                (weight.product)(self.device, selected, &scratch, &y)?;
                output.assign(&ArrayView1::from(&y.to_host(self.device)?));
                product.kept += list.len();
                product.bytes +=
                    list.indices().iter().map(|&j| weight.column_bytes[j as usize]).sum::<usize>();
            }
            Ok(product)
        })
    }
}

fn upload<V: Element, D: Device + 'static>(
    device: &D,
    columns: &Columns<V>,
) -> Result<Box<LaunchProduct<D>>, DeviceError> {
    match columns {
        Columns::Dense(weight) => product_with::<V, Dense<V, D>, D>(device, weight),
        Columns::Index(weight) => product_with::<V, Index<V, D>, D>(device, weight),
        Columns::Bitmap(weight) => product_with::<V, Bitmap<V, D>, D>(device, weight),
    }
}

fn product_with<V: Element, W: spmspv::Weight<V, D> + Send + Sync + 'static, D: Device>(
    device: &D,
    weight: &W::Host,
) -> Result<Box<LaunchProduct<D>>, DeviceError> {
    let weight = W::new(device, weight)?;
    Ok(Box::new(move |device, x, scratch, y| weight.product(device, x, scratch, y)))
}
