// The ranks of a test that lemo_mpi_test starts.
#pragma once

#include "worker/train/parallel/gang.h"

namespace lemo::train {

// Joined before the first test, left after the last one. A test that fails on one rank fails on
// all: the others are told, or notice within a minute that it is late.
Gang& TestGang();

}  // namespace lemo::train
