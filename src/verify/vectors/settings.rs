//! The settings of a case in the reference's terms.

use super::case::{ActivationSparsity, CaseSettings, CaseSparsity, GridKind, OrderKind};
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

/// The settings that an algorithm has, by name.
fn names(algorithm: Kind, quantises: bool) -> Vec<&'static str> {
    let r#loop = [
        "block_size",
        "damping",
        "column_order",
        "order_run",
        "hessian_factor",
        "group_member",
        "identity_fallback",
    ];
    let mask = ["weight_sparsity", "skip_narrow_group", "preserve_mask", "bits"];
    let residual = ["alpha", "activation_sparsity"];
    let mut names = match algorithm {
        Kind::SparseGpt => [&r#loop[..], &mask].concat(),
        Kind::DuoGpt => [&r#loop[..], &mask, &residual].concat(),
        Kind::Gptq => r#loop.to_vec(),
        Kind::Gptaq => [&r#loop[..], &residual].concat(),
        Kind::Wanda => vec!["weight_sparsity", "variant"],
        Kind::Magnitude => vec!["weight_sparsity"],
        Kind::Activation => vec!["activation_sparsity"],
        Kind::Teal => vec!["activation_sparsity", "bins", "outlier_threshold", "apply_prefill"],
    };
    if quantises {
        names.extend(["bits", "group_size", "static_groups", "symmetric", "mse", "grid"]);
    }
    names
}

impl CaseSettings {
    /// These settings, with defaults for those that `algorithm` needs besides, and the rule of the mask.
    ///
    /// # Errors
    /// A setting that the algorithm does not have.
    pub fn completed(mut self, algorithm: Kind) -> Result<Self, String> {
        let quantises = self.bits.is_some() || matches!(algorithm, Kind::Gptq | Kind::Gptaq);
        let known = names(algorithm, quantises && names(algorithm, false).contains(&"block_size"));
        let given = serde_json::to_value(&self).map_err(|error| error.to_string())?;
        for name in given.as_object().into_iter().flat_map(|given| given.keys()) {
            if !known.contains(&name.as_str()) {
                return Err(format!(
                    "`{name}` is no setting of {}; it has {}",
                    algorithm.name(),
                    known.join(", ")
                ));
            }
        }
        let has = |name: &str| known.contains(&name);
        if has("weight_sparsity") {
            let by_group = match self.weight_sparsity.get_or_insert(CaseSparsity::Fraction(0.5)) {
                CaseSparsity::Groups { .. } => true,
                CaseSparsity::Fraction(_) => false,
            };
            if algorithm == Kind::DuoGpt && by_group {
                self.skip_narrow_group.get_or_insert(true);
            }
            let rule = match algorithm {
                _ if by_group => "per-group-count",
                Kind::Wanda if self.variant.is_some() => "cumulative-share",
                Kind::Wanda => "per-row-count",
                Kind::Magnitude => "per-layer-threshold-inclusive",
                _ => "per-block-threshold-inclusive",
            };
            self.mask_rule = Some(rule.into());
        }
        if has("block_size") {
            self.block_size.get_or_insert(32);
            self.damping.get_or_insert(0.01);
            if *self.column_order.get_or_insert(OrderKind::Natural) == OrderKind::Interleaved {
                self.order_run.get_or_insert(8);
            }
            self.hessian_factor.get_or_insert(if algorithm == Kind::DuoGpt { 1 } else { 2 });
        }
        if has("alpha") {
            self.alpha.get_or_insert(0.25);
        }
        if has("grid") {
            self.bits.get_or_insert(4);
            self.static_groups.get_or_insert(false);
            self.symmetric.get_or_insert(true);
            self.mse.get_or_insert(false);
            self.grid.get_or_insert(match algorithm {
                Kind::Gptaq => GridKind::Signed,
                _ => GridKind::Offset,
            });
        }
        if has("activation_sparsity") {
            let p = self.activation_sparsity.get_or_insert(ActivationSparsity::One(0.5));
            if let (Kind::Teal, ActivationSparsity::One(one)) = (algorithm, &p) {
                *p = ActivationSparsity::Several(vec![*one]);
            }
        }
        if algorithm == Kind::Activation {
            self.mask_rule = Some("per-token-threshold-kept-inclusive".into());
        }
        if has("bins") {
            self.bins.get_or_insert(200);
            self.outlier_threshold.get_or_insert(0.01);
            self.apply_prefill.get_or_insert(true);
        }
        Ok(self)
    }

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
