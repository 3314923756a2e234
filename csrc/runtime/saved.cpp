// A session in a buffer: a header, latents of context, history and members, the frames that each member keeps if some
// were stopped, what the model is told of context and history, and the SHA-256 of all before it. Keys, values and the
// decoder's memory are computed again from the latents, to the same bits.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "runtime/session.h"

namespace enma {

namespace {

constexpr char MAGIC[8] = {'E', 'N', 'M', 'A', 'S', 'A', 'V', 'E'};
// The second one has members that were stopped.
constexpr std::uint32_t VERSION = 1, STOPPED_VERSION = 2;
constexpr char REMEDY[] = "; save the session again";

}  // namespace

// Without padding, so that every byte is defined.
struct Session::SavedHeader {
    char magic[8];
    std::uint32_t version;
    std::uint32_t shifts;
    std::uint8_t model[32];
    std::uint64_t seed, trajectory;
    std::int64_t first_member, num_members, num_frames;
    std::uint32_t temperature;
    std::uint32_t drawn;  // fields that were drawn from scattered observations; 0 if none were
    std::int64_t observed, done;
    std::int64_t context, made;  // latent frames
};

Session::SavedHeader Session::header() const {
    static_assert(sizeof(SavedHeader) == 8 + 8 + 32 + 40 + 8 + 32);
    const std::int64_t each = num_groups() * latent_size();
    SavedHeader h{};
    std::memcpy(h.magic, MAGIC, sizeof MAGIC);
    h.version = observed_.kept.empty() ? VERSION : STOPPED_VERSION;
    h.shifts = static_cast<std::uint32_t>(settings_.shifts);
    std::copy_n(model_->identity().data(), sizeof h.model, h.model);
    h.seed = settings_.seed;
    h.trajectory = settings_.trajectory;
    h.first_member = settings_.first_member;
    h.num_members = settings_.num_members;
    h.num_frames = settings_.num_frames;
    h.temperature = std::bit_cast<std::uint32_t>(settings_.temperature);
    const std::size_t ways = groups_.views.size();
    h.drawn = ways == static_cast<std::size_t>(settings_.shifts) ? 0 : static_cast<std::uint32_t>(ways);
    h.observed = observed_.frames;
    h.done = observed_.done;
    h.context = static_cast<std::int64_t>(observed_.context.size()) / each;
    h.made = num_latents() - num_history();
    return h;
}

std::size_t Session::saved_bytes() const {
    check_ready();
    const std::size_t values = observed_.context.size() + observed_.history.size() + observed_.made.size();
    std::size_t told = 0;
    for (const Told* each : {&observed_.context_told, &observed_.told}) {
        KnownInputs::save(*each, [&](const void*, std::size_t size) { told += size; });
    }
    return sizeof(SavedHeader) + values * sizeof(float) + observed_.kept.size() * sizeof(std::int64_t) + told +
           sizeof(Digest);
}

void Session::save(char* out) const {
    const SavedHeader h = header();
    char* at = out;
    const auto put = [&](const void* data, std::size_t size) {
        if (size > 0) std::memcpy(at, data, size);
        at += size;
    };
    put(&h, sizeof h);
    for (const std::vector<float>* part : {&observed_.context, &observed_.history, &observed_.made}) {
        put(part->data(), part->size() * sizeof(float));
    }
    put(observed_.kept.data(), observed_.kept.size() * sizeof(std::int64_t));
    for (const Told* told : {&observed_.context_told, &observed_.told}) KnownInputs::save(*told, put);
    const Digest digest = sha256(out, at - out);
    put(digest.data(), digest.size());
}

void Session::restore(const char* bytes, std::size_t size) {
    SavedHeader h;
    if (size < sizeof h + sizeof(Digest))
        fail(ENMA_INVALID_ARGUMENT, "buffer: ", size, " bytes are no saved session", REMEDY);
    std::memcpy(&h, bytes, sizeof h);
    if (std::memcmp(h.magic, MAGIC, sizeof MAGIC) != 0)
        fail(ENMA_INVALID_ARGUMENT, "buffer: not a saved session", REMEDY);
    if (h.version != VERSION && h.version != STOPPED_VERSION) {
        fail(ENMA_UNSUPPORTED, "buffer: saved in version ", h.version, "; this libenma reads ", VERSION, " and ",
             STOPPED_VERSION);
    }
    const Digest digest = sha256(bytes, size - sizeof(Digest));
    if (std::memcmp(digest.data(), bytes + size - sizeof(Digest), sizeof(Digest)) != 0) {
        fail(ENMA_INVALID_ARGUMENT, "buffer: was altered or cut short", REMEDY);
    }
    const auto check = [](bool same, const char* what) {
        if (!same) fail(ENMA_INVALID_ARGUMENT, "buffer: saved with another ", what, " than this session has");
    };
    const SessionSettings& set = settings_;
    check(std::equal(h.model, h.model + sizeof h.model, model_->identity().data()), "model");
    check(h.seed == set.seed, "seed");
    check(h.trajectory == set.trajectory, "trajectory");
    check(h.first_member == set.first_member, "first_member");
    check(h.num_members == set.num_members, "num_members");
    check(h.num_frames == set.num_frames, "num_frames");
    check(h.shifts == static_cast<std::uint32_t>(set.shifts), "shifts");
    check(h.temperature == std::bit_cast<std::uint32_t>(set.temperature), "temperature");
    const bool drawn = model_->covariance() != nullptr && h.drawn == static_cast<std::uint32_t>(num_drawn());
    check(h.drawn == 0 || drawn, "way of observing");
    in_groups(h.drawn == 0 ? set.shifts : num_drawn(), [&] { restore_latents(h, bytes, size); });
}

void Session::restore_latents(const SavedHeader& h, const char* bytes, std::size_t size) {
    const SessionSettings& set = settings_;
    // The digest guards against accidents, this against buffers that were made up.
    const CodecConfig& codec = model_->config().codec;
    const std::int64_t most = model_->config().num_frames, Z = latent_size();
    const bool valid = 0 <= h.observed && h.observed < 1 << 16 && 0 <= h.context &&
                       h.context <= codec.latent_frames(most) && (h.context > 0 || h.observed >= 3);
    if (!valid) fail(ENMA_INVALID_ARGUMENT, "buffer: not a saved session", REMEDY);
    Observed observed;
    observed.frames = h.observed;
    observed.done = h.done;
    const std::int64_t read = num_read(observed);
    if (read > 0) separate();
    const std::int64_t G = num_groups();
    const std::int64_t frames = set.num_frames > 0 ? set.num_frames : std::max<std::int64_t>(0, most - h.observed);
    const std::int64_t first = codec.whole_latents(h.observed);
    const std::int64_t last = codec.latent_frames(h.observed + std::max<std::int64_t>(frames, 1)) - first;
    // Before any sum with it, which could overflow.
    if (h.done < 0 || h.done > frames) fail(ENMA_INVALID_ARGUMENT, "buffer: not a saved session", REMEDY);
    // As many latent frames as what was given out takes, none beyond.
    const std::int64_t needed = h.done == 0 ? read : codec.latent_frames(h.observed + h.done) - first;
    if (h.made != needed || h.made > last) fail(ENMA_INVALID_ARGUMENT, "buffer: not a saved session", REMEDY);
    const std::uint64_t values = static_cast<std::uint64_t>((h.context + first) * G * Z + h.made * set.num_members * Z);
    const std::size_t kept = h.version == STOPPED_VERSION ? set.num_members : 0;
    const std::size_t fixed = sizeof h + values * sizeof(float) + kept * sizeof(std::int64_t) + sizeof(Digest);
    const auto fit = [&](bool fits) {
        if (!fits) fail(ENMA_INVALID_ARGUMENT, "buffer: ", size, " bytes do not fit what it says it holds", REMEDY);
    };
    fit(model_->config().known.empty() ? size == fixed : size > fixed);
    const char *at = bytes + sizeof h, *const end = bytes + size - sizeof(Digest);
    const auto take = [&](std::vector<float>& out, std::int64_t count, bool checked) {
        out.resize(count);
        if (count > 0) std::memcpy(out.data(), at, count * sizeof(float));
        at += count * sizeof(float);
        // What a member makes may overflow, which is no reason to lose the others.
        if (checked && !std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); })) {
            fail(ENMA_INVALID_ARGUMENT, "buffer: holds a value that is not finite", REMEDY);
        }
    };
    take(observed.context, h.context * G * Z, true);
    take(observed.history, first * G * Z, true);
    take(observed.made, h.made * set.num_members * Z, false);
    observed.kept.resize(kept);
    if (kept > 0) std::memcpy(observed.kept.data(), at, kept * sizeof(std::int64_t));
    at += kept * sizeof(std::int64_t);
    if (h.context > 0) observed.context_told = context_known_.restored(at, end, h.context);
    observed.told = known_.restored(at, end, total_frames(h.observed));
    fit(at == end);
    for (const std::int64_t frames_kept : observed.kept) {
        if (frames_kept != GOES_ON && (frames_kept < 0 || frames_kept > h.done)) {
            fail(ENMA_INVALID_ARGUMENT, "buffer: not a saved session", REMEDY);
        }
    }
    begin(std::move(observed));
}

}  // namespace enma
