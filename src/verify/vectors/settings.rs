//! The settings of a case in the reference's terms.

use super::case::{CaseSettings, CaseSparsity, GridKind, OrderKind};
use crate::reference::baseline::gptaq::{GridCodes, GridConfig, GridRange, GroupGrids, Symmetry};
use crate::reference::{
    Alpha, ColumnOrder, DeadChannels, Dialect, ExistingZeros, FailedFactor, LazyUpdate, NarrowGroups,
    PruneConfig, Sparsity, Threshold,
};
use crate::verify::kind::Kind;

/// A setting that the algorithm needs.
pub(super) fn needed<V: Clone>(value: &Option<V>, name: &str) -> Result<V, String> {
    value.clone().ok_or_else(|| format!("setting `{name}` is missing"))
}

impl CaseSettings {
    /// p_w, or N:M.
    ///
    /// # Errors
    /// That there is none.
    pub fn sparsity(&self) -> Result<Sparsity, String> {
        Ok(match needed(&self.weight_sparsity, "weight_sparsity")? {
            CaseSparsity::Fraction(p) => Sparsity::Unstructured(p),
            CaseSparsity::Groups { n, m, .. } => Sparsity::NofM { n, m },
        })
    }

    /// What becomes of groups that are cut short.
    pub fn narrow_groups(&self) -> NarrowGroups {
        if self.skip_narrow_group == Some(true) { NarrowGroups::Keep } else { NarrowGroups::Prune }
    }

    /// The loop's settings.
    ///
    /// # Errors
    /// The first setting that is missing.
    pub fn prune_config(&self, kind: Kind) -> Result<PruneConfig, String> {
        // Quantisation alone prunes nothing.
        let (weight_sparsity, threshold) = match self.weight_sparsity {
            Some(_) => (self.sparsity()?, Threshold::Inclusive),
            None => (Sparsity::Unstructured(0.0), Threshold::Exact),
        };
        let alpha = match kind {
            Kind::DuoGpt => Alpha::both(needed(&self.alpha, "alpha")?),
            Kind::Gptaq => Alpha { score: 0.0, update: needed(&self.alpha, "alpha")? },
            _ => Alpha::both(0.0),
        };
        Ok(PruneConfig {
            weight_sparsity,
            block_size: needed(&self.block_size, "block_size")?,
            damping: needed(&self.damping, "damping")?,
            alpha,
            column_order: match self.column_order.unwrap_or(OrderKind::Natural) {
                OrderKind::Natural => ColumnOrder::Natural,
                OrderKind::Hessian => ColumnOrder::Hessian,
                OrderKind::HessianDrift => ColumnOrder::HessianDrift,
                OrderKind::Interleaved => {
                    ColumnOrder::Interleaved { run: needed(&self.order_run, "order_run")? }
                }
            },
            lazy_update: LazyUpdate::Pruned,
            threshold,
            dead_channels: DeadChannels::Zero,
            hessian_scale: f64::from(needed(&self.hessian_factor, "hessian_factor")?),
            dialect: self.dialect(&weight_sparsity),
        })
    }

    fn dialect(&self, sparsity: &Sparsity) -> Dialect {
        Dialect {
            narrow_groups: match sparsity {
                Sparsity::NofM { .. } => self.narrow_groups(),
                Sparsity::Unstructured(_) => NarrowGroups::Refuse,
            },
            failed_factor: match self.identity_fallback {
                Some(true) => FailedFactor::Identity,
                _ => FailedFactor::Stop,
            },
            existing_zeros: match self.preserve_mask {
                Some(true) => ExistingZeros::Preserve,
                _ => ExistingZeros::Ignore,
            },
            group_member: self.group_member.unwrap_or(0),
        }
    }

    /// The grids; none where nothing is quantised.
    ///
    /// # Errors
    /// The first setting that is missing.
    pub fn grid_config(&self) -> Result<Option<GridConfig>, String> {
        let Some(bits) = self.bits else { return Ok(None) };
        let symmetry = match needed(&self.symmetric, "symmetric")? {
            true => Symmetry::Symmetric,
            false => Symmetry::Asymmetric,
        };
        Ok(Some(GridConfig {
            range: if self.mse == Some(true) { GridRange::LeastError } else { GridRange::Full },
            group_size: self.group_size,
            codes: match needed(&self.grid, "grid")? {
                GridKind::Offset => GridCodes::Offset,
                GridKind::Signed => GridCodes::Signed,
            },
            group_grids: match self.static_groups {
                Some(true) => GroupGrids::Static,
                _ => GroupGrids::AtBlockStart,
            },
            ..GridConfig::new(bits, symmetry)
        }))
    }
}
