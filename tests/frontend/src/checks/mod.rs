//! The checks, a file a room. Each connects on the terms it wants; `suite` closes the device behind
//! it. What must hold is written in the check; its `why` cites who says so, where that is not plain.

mod grants;
mod negotiation;
mod nodes;
mod operations;
mod place;
mod ring;
mod segments;
mod shapes;

use crate::verdict::Check;

/// Every room, in the order in which they are played.
pub(crate) const ROOMS: &[&[Check]] = &[
    nodes::CHECKS,
    negotiation::CHECKS,
    operations::CHECKS,
    segments::CHECKS,
    place::CHECKS,
    ring::CHECKS,
    shapes::CHECKS,
    grants::CHECKS,
    ring::LAST,
];
