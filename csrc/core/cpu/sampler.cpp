// The frames of a session: its memory, what it reads, and each frame that its decoders decide. sampler_weights.cpp packs the
// weights; the transformers are kernels, sampler_kernels.h.
#include "core/cpu/sampler.h"

#include <algorithm>
#include <cstring>

#include "core/cpu/allocator.h"
#include "core/cpu/vector_kernels.h"
#include "core/philox.h"

namespace enma {

namespace {

// Rows of a product that one thread carries at a time, if it carries whole members: activations stay in its
// second-level cache, and weights pass through it once for all of them.
constexpr int ROWS_AT_A_TIME = 128;
}  // namespace

SamplerSession::SamplerSession(std::shared_ptr<const Sampler> sampler, std::shared_ptr<const std::vector<float>> turns,
                               const SamplerSettings& settings)
    : sampler_(std::move(sampler)),
      turns_(std::move(turns)),
      model_(sampler_->view()),
      settings_(settings),
      group_(settings_.rows),
      seeds_(settings_.rows),
      members_(settings_.rows),
      past_frames_(sampler_->step().past()) {
    const SamplerView& m = model_;
    const SamplerSettings& set = settings_;
    if (turns_ != nullptr) model_.rotary = {turns_->data(), turns_->data() + turns_->size() / 2};
    step_ = sampler_->step().session(model_, state_, set);
    if (set.first_frame == 0 && &sampler_->initial() != &sampler_->step()) {
        // A draw from a distribution of its own, whatever the temperature of the others.
        DecoderSettings own = set;
        own.temperature = 1.0f;
        initial_ = sampler_->initial().session(model_, state_, own);
    }
    const int counters = 1 + std::max(step_->counters(), initial_ ? initial_->counters() : 0);
    counters_ = std::vector<std::atomic<int>>(counters);
    const int N = m.tokens, C = m.channels;
    const bool halves = is_half(m.format) && kernels(set.isa).halves;
    const std::size_t input = halves ? 2 : 4, ld = row_stride(m.width), B = set.rows, G = set.groups;
    state_.group = group_.data();
    state_.seeds = seeds_.data();
    state_.members = members_.data();
    state_.attention = &vector_kernels(set.isa).frame_attention;

    const auto cache = [&](Allocator& memory, std::size_t rows, std::size_t frames) {
        const std::ptrdiff_t value = static_cast<std::ptrdiff_t>(frames * N * ld);
        const std::ptrdiff_t layer = static_cast<std::ptrdiff_t>(rows) * 2 * value;
        return KeyValues{memory.take<char>(m.causal_layers * layer * input), layer, 2 * value, value,
                         static_cast<std::ptrdiff_t>(ld)};
    };
    const auto caches = [&](char* to) {
        Allocator memory(to);
        state_.prefix = cache(memory, G, set.prefix_frames);
        state_.own = cache(memory, B, set.own_frames);
        return memory.used();
    };
    const auto buffers = [&](char* to) {
        Allocator memory(to);
        state_.group_h = memory.take<float>(G * N * ld);
        state_.anchor = memory.take<float>(G * N * ld);
        state_.opening = memory.take<float>(N * ld);
        state_.h = memory.take<float>(set.own_frames == 0 ? 0 : B * N * ld);
        state_.tokens = memory.take<float>(B * N * C);
        state_.group_past = memory.take<float>(G * past_size());
        state_.past = memory.take<float>(B * past_size());
        const std::size_t masked = m.masked_layers > 0 ? B : 0;
        state_.order = memory.take<int>(masked * N);
        state_.input = memory.take<float>(masked * m.masked_rows * ld);
        state_.context = memory.take<float>(m.concat ? 0 : masked * N * ld);
        state_.noise = memory.take<float>(B * N * C);
        if (initial_) initial_->take(memory);
        step_->take(memory);
        return memory.used();
    };
    keys_values_bytes_ = caches(nullptr);
    keys_values_ = Buffer(keys_values_bytes_);
    caches(keys_values_.data());
    buffer_bytes_ = buffers(nullptr);
    buffers_ = Buffer(buffer_bytes_);
    buffers(buffers_.data());

    // Each thread takes members of its own where there are enough of them to keep all threads busy.
    solo_ = set.threads == 1 || set.rows >= 4 * set.threads || set.rows % set.threads == 0;
    const int threads = solo_ ? set.threads : 1;
    const auto at_a_time = [&](int rows_each) {
        const int even = static_cast<int>((set.rows + threads - 1) / threads);
        return std::clamp(ROWS_AT_A_TIME / rows_each, 1, std::max(even, 1));
    };
    item_members_ = at_a_time(m.masked_rows);
    causal_members_ = at_a_time(N);
    const std::size_t rows = std::max(item_members_ * m.masked_rows, causal_members_ * N);
    const std::size_t ldh = row_stride(m.hidden);
    shared_bytes_ = pages(rows * ld * 8 + rows * (4 * ld + ldh) * 4 + 6 * 64);
    const std::int64_t keys = (set.prefix_frames + set.own_frames + 1) * N;
    const std::size_t work = frame_attention_work(std::max(keys, std::int64_t{m.masked_rows}));
    own_bytes_ = GEMM_SCRATCH + sizeof(float) * (GEMM_ROWS * (m.head_columns + SAMPLER_COLUMNS) +
                                                 2 * (rows + GEMM_ROWS) * m.input_stride + work);
    for (const DecoderSession* decoder : {initial_.get(), step_.get()}) {
        if (decoder == nullptr) continue;
        const WorkBytes needed = decoder->work();
        own_bytes_ = std::max(own_bytes_, needed.own);
        shared_bytes_ = std::max(shared_bytes_, pages(needed.shared));
    }
    own_bytes_ = pages(own_bytes_ + 8 * 64);
    // A thread with members of its own needs what a team shares for itself.
    thread_bytes_ = own_bytes_ + (solo_ ? shared_bytes_ : 0);
    work_ = Buffer(shared_bytes_ + set.threads * thread_bytes_);
}

void SamplerSession::reset() {
    state_.prefix_frames = state_.own_frames = 0;
    begun_ = false;
}

void SamplerSession::read_frame(bool shared, int start, const float* tokens) {
    const Kernels& run = kernels(settings_.isa);
    const int rows = static_cast<int>(shared ? settings_.groups : settings_.rows);
    float* to = !shared ? state_.h : start >= 0 ? state_.anchor : state_.group_h;
    Barrier barrier;
    parallel(settings_.threads, [&](int thread, int threads) {
        char* own = work_.data() + shared_bytes_ + thread * thread_bytes_;
        const Member member{thread, threads, &barrier};
        for (int begin = 0; begin < rows; begin += causal_members_) {
            const CausalTask task{begin, std::min(begin + causal_members_, rows), shared, start, tokens, to};
            run.causal_frame(model_, state_, task, member, work_.data(), own);
        }
    });
}

void SamplerSession::start_segment(int segment) {
    const std::size_t start = static_cast<std::size_t>(model_.tokens) * row_stride(model_.width);
    const std::size_t groups = settings_.groups;
    // A segment that nothing precedes begins alike in all groups and every time; its keys and values stay.
    const bool first = state_.prefix_frames == 0;
    if (first && segment == opening_) {
        for (std::size_t g = 0; g < groups; ++g) std::copy_n(state_.opening, start, state_.anchor + g * start);
    } else {
        read_frame(true, segment, nullptr);
        if (first) {
            std::copy_n(state_.anchor, start, state_.opening);
            opening_ = segment;
        }
    }
    std::copy_n(state_.anchor, groups * start, state_.group_h);
    std::fill_n(state_.group_past, groups * past_size(), 0.0f);
    state_.at_start = true;
    ++state_.prefix_frames;
}

void SamplerSession::read(const float* tokens) {
    read_frame(true, -1, tokens);
    for (int g = 0; g < settings_.groups; ++g) remember(state_.group_past, tokens, g);
    state_.at_start = false;
    ++state_.prefix_frames;
}

// A row's newest frame takes the place of its oldest one before the next frame.
void SamplerSession::remember(float* past, const float* tokens, int row) const {
    if (past_frames_ == 0) return;
    const std::size_t frame = frame_size();
    float* frames = past + row * past_size();
    std::memmove(frames, frames + frame, (past_frames_ - 1) * frame * sizeof(float));
    std::memcpy(frames + (past_frames_ - 1) * frame, tokens + row * frame, frame * sizeof(float));
}

void SamplerSession::follow(const float* tokens) {
    read_frame(false, -1, tokens);
    for (int row = 0; row < settings_.rows; ++row) remember(state_.past, tokens, row);
    go_on();
}

void SamplerSession::go_on() {
    ++state_.frame;
    ++state_.own_frames;
    deciding_ = step_.get();
}

void SamplerSession::keep(const int* rows, int count) {
    const SamplerView& m = model_;
    const std::size_t frame = sizeof(float) * m.tokens * row_stride(m.width);
    const std::size_t input = is_half(m.format) && kernels(settings_.isa).halves ? 2 : 4;
    const std::size_t known = static_cast<std::size_t>(state_.own_frames) * m.tokens * state_.own.token * input;
    const std::size_t past = past_size();
    for (int i = 0; i < count; ++i) {
        const int row = rows[i];
        if (row == i) continue;
        group_[i] = group_[row];
        seeds_[i] = seeds_[row];
        members_[i] = members_[row];
        if (past > 0) std::memcpy(state_.past + i * past, state_.past + row * past, past * sizeof(float));
        if (state_.own_frames == 0) continue;
        char* h = reinterpret_cast<char*>(state_.h);
        std::memcpy(h + i * frame, h + row * frame, frame);
        for (int part = 0; part < 2 * m.causal_layers; ++part) {
            char* from = state_.own.data + (part / 2 * state_.own.layer + part % 2 * state_.own.value) * input;
            std::memcpy(from + i * state_.own.row * input, from + row * state_.own.row * input, known);
        }
    }
    settings_.rows = count;
}

void SamplerSession::reopen(std::int64_t count, std::int64_t first_frame) {
    settings_.rows = count;
    settings_.first_frame = first_frame;
    begun_ = false;
}

void SamplerSession::begin(const std::uint32_t* seeds, const std::uint32_t* members, const int* groups) {
    std::copy_n(seeds, settings_.rows, seeds_.data());
    std::copy_n(members, settings_.rows, members_.data());
    std::copy_n(groups, settings_.rows, group_.data());
    const std::size_t past = past_size();
    for (int row = 0; past > 0 && row < settings_.rows; ++row) {
        std::copy_n(state_.group_past + group_[row] * past, past, state_.past + row * past);
    }
    state_.own_frames = 0;
    state_.frame = static_cast<int>(settings_.first_frame);
    deciding_ = initial_ && settings_.first_frame == 0 ? initial_.get() : step_.get();
    begun_ = true;
}

void draw_noise(const SamplerView& model, const SamplerState& state, int row, int step, int done, int count,
                float temperature) {
    const int N = model.tokens, C = model.channels;
    for (int i = 0; i < count; ++i) {
        const int token = state.order[row * N + done + i];
        const PhiloxWords counter{0, static_cast<std::uint32_t>(token), static_cast<std::uint32_t>(step),
                                  static_cast<std::uint32_t>(state.frame)};
        float* out = state.noise + (static_cast<std::ptrdiff_t>(row) * count + i) * C;
        philox_token_normals(counter, state.seeds[row], state.members[row], C, out);
        for (int c = 0; c < C; ++c) out[c] *= temperature;
    }
}

void SamplerSession::frame(float* out, bool last) {
    const Kernels& run = kernels(settings_.isa);
    const int rows = static_cast<int>(settings_.rows);
    for (std::atomic<int>& counter : counters_) counter.store(0, std::memory_order_relaxed);
    Barrier barrier;
    parallel(settings_.threads, [&](int thread, int threads) {
        char* const own = work_.data() + shared_bytes_ + thread * thread_bytes_;
        const Member member{thread, threads, &barrier};
        const Region region{member,        solo_ ? Member{0, 1, &barrier} : member,
                            work_.data(),  solo_ ? own + own_bytes_ : work_.data(),
                            own,           run,
                            settings_.isa, rows,
                            item_members_, counters_.data() + 1};
        deciding_->decide(region);
        if (last) return;
        for (int row = region.begin(rows); row < region.end(rows); ++row) remember(state_.past, state_.tokens, row);
        region.share_out(-1, causal_members_, [&](int begin, int end) {
            const CausalTask task{begin, end, false, -1, state_.tokens, state_.h};
            run.causal_frame(model_, state_, task, region.team, region.shared, own);
        });
    });
    std::memcpy(out, state_.tokens, sizeof(float) * rows * frame_size());
    begun_ = !last;
    if (!last) go_on();
}

SamplerPlan SamplerSession::plan() const {
    return {sampler_->bytes(), keys_values_bytes_, buffer_bytes_, work_.size()};
}

}  // namespace enma
