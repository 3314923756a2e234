// Places of a latent frame, and the tokens that patches of them are.
#pragma once

#include <cstdint>
#include <vector>

namespace enma {

// In lines; a field on a line has one of them.
struct LatentGrid {
    int lines, places;
    bool plane, ring_of_lines, ring;
    int patch_lines, patch_places;  // of a token

    int size() const { return lines * places; }
    int patch() const { return patch_lines * patch_places; }
    // Number of a place among the parts of all tokens.
    int part_of(int place) const {
        const int line = place / places, at = place % places;
        const int token = line / patch_lines * (places / patch_places) + at / patch_places;
        return token * patch() + line % patch_lines * patch_places + at % patch_places;
    }
};

// From what each dimension has, of one or two: places, places of a token, and whether it is periodic.
inline LatentGrid latent_grid(const std::vector<std::int64_t>& grid, const std::vector<std::int64_t>& patch,
                              const std::vector<bool>& periodic) {
    const bool plane = grid.size() == 2;
    const auto first = [&](const std::vector<std::int64_t>& sizes) { return plane ? static_cast<int>(sizes[0]) : 1; };
    return {first(grid),  static_cast<int>(grid.back()), plane, plane && periodic[0], periodic.back(),
            first(patch), static_cast<int>(patch.back())};
}

}  // namespace enma
