// An offer's name.
#pragma once

#include <string>

#include "planner/offers/offers.h"

namespace lemo::planner {

// 32 hexadecimal digits of everything that the request says about the run and everything that the
// offer fixes; bounds and preference, which choose among offers, are not in it. Equal on all
// machines. A name, not a seal: FNV-1a, against accidents and not against forgers.
std::string IdOf(const OfferRequest& request, const Offer& offer);

}  // namespace lemo::planner
