! libenma for Fortran: models, sessions and forecasts over enma.h.
!
! Arrays are passed as they are, without a copy: Fortran's first axis is the fastest, so what C sees as
! [members, frames, grid, channels] is real(:, :, :, :) with shape (channels, grid, frames, members) here. On a plane `grid`
! is two axes, the second dimension first: (channels, ny, nx, frames, members). Arrays have to be contiguous, of kind
! real32 or real64.
!
! Every procedure takes an optional status, ENMA_OK if all is well, or the error of the C function. Without it a failure
! stops the program by error stop with the message, which enma_message() returns too.
module enma
    use, intrinsic :: iso_c_binding
    use, intrinsic :: iso_fortran_env, only: int8, int32, int64, real32, real64
    implicit none
    private

    public :: enma_model, enma_session, enma_open, enma_close, enma_new_session, enma_free, enma_observe
    public :: enma_known, enma_observe_points, enma_step, enma_forecast, enma_stop, enma_progress, enma_save, enma_restore
    public :: enma_message

    ! Statuses, as in enma.h.
    integer(c_int32_t), parameter, public :: ENMA_OK = 0, ENMA_INVALID_ARGUMENT = 1, ENMA_CHECKPOINT = 2
    integer(c_int32_t), parameter, public :: ENMA_UNSUPPORTED = 3, ENMA_STATE = 4, ENMA_NO_MEMORY = 5, ENMA_INTERNAL = 6
    ! Formats of the weights while sampling.
    integer(c_int32_t), parameter, public :: ENMA_FP32 = 0, ENMA_BF16 = 1

    ! Axes of an array in Fortran: at most, and of one that was not given.
    integer, parameter :: MOST_AXES = 15, ABSENT = -1

    ! A checkpoint that was opened. Any number of sessions and threads may use it.
    type :: enma_model
        type(c_ptr) :: handle = c_null_ptr  ! of the C library
        integer(int64) :: grid = 0  ! points of a frame, on a plane those of both dimensions together
        integer(int64) :: channels = 0  ! values of a point
        integer(int64) :: num_frames = 0  ! of a trajectory in training, observed and forecast
        integer :: dims = 0  ! of space
        integer(int64) :: shape(3) = 0  ! points along each dimension of C, 1 beyond the last
        real(real64) :: frame_interval = 0  ! time between two frames, in the unit of the training data
        real(real64) :: length = 0  ! of the domain along its first dimension of C, in the unit of the training data
        logical :: scattered = .false.  ! whether frames may be observed at scattered points
    end type enma_model

    ! Members of one trajectory, with their memory. One thread at a time may use it.
    type :: enma_session
        type(c_ptr) :: handle = c_null_ptr  ! of the C library
        integer(int64) :: num_members = 0  ! sampled together
    end type enma_session

    ! Gives a known input by name, in the units of training, to a model that was trained with known inputs. The next
    ! enma_observe takes all that were given.
    !
    !   session: gets the input
    !   name: of the input in training
    !   values: of what is observed next: a scalar, (frames), (grid) or (grid, frames), of all observed and forecast frames
    !   context_values: the same of the context
    !
    ! Errors: those of enma_session_known.
    interface enma_known
        module procedure known_real32, known_real64
    end interface enma_known

    ! Encodes and reads observed frames, and forgets what was observed before.
    !
    !   session: observes
    !   history: observed frames (channels, grid, frames), at least 3, or 1 with a context
    !   context: frames of another trajectory of the same physics (channels, grid, frames)
    !
    ! Errors: those of enma_session_observe.
    interface enma_observe
        module procedure observe_real32, observe_real64
    end interface enma_observe

    ! Observes frames at scattered points, of a model that is scattered. Frames share their points, or each has its own:
    ! then the rows of the frames follow one another, and counts has their numbers.
    !
    !   session: observes
    !   points: coordinates (dims, P), with counts (dims, rows)
    !   values: in the units of the fields, (channels, P, frames), with counts (channels, rows)
    !   counts: points of each frame (frames)
    !   context_points: coordinates of another trajectory of the same physics, likewise
    !   context_values: its values, likewise
    !   context_counts: points of each of its frames
    !   errors: standard deviations of the error of the values, one or one for each channel
    !
    ! Errors: those of enma_session_observe_points.
    interface enma_observe_points
        module procedure observe_points_real32, observe_points_real64
    end interface enma_observe_points

    ! Forecasts the next frame of every member.
    !
    !   session: one that has observed
    !   frame: written: (channels, grid, members)
    !
    ! Errors: those of enma_session_step.
    interface enma_step
        module procedure step_real32, step_real64
    end interface enma_step

    ! Forecasts all frames that are left.
    !
    !   session: one that has observed
    !   frames: written: (channels, grid, frames, members), frames as enma_progress has left
    !
    ! Errors: those of enma_session_forecast.
    interface enma_forecast
        module procedure forecast_real32, forecast_real64
    end interface enma_forecast

    ! An array of either kind, which may be absent: its address, bits of a value, and its shape in C.
    type :: array
        type(c_ptr) :: data = c_null_ptr
        integer :: bits = 0, axes = ABSENT
        integer(c_int64_t) :: sizes(MOST_AXES) = 0
    end type array

    ! DLTensor
    type, bind(c) :: tensor
        type(c_ptr) :: data
        integer(c_int32_t) :: device_type, device_id, ndim
        integer(c_int8_t) :: code, bits
        integer(c_int16_t) :: lanes
        type(c_ptr) :: shape, strides
        integer(c_int64_t) :: byte_offset
    end type tensor

    type, bind(c) :: model_options
        integer(c_size_t) :: struct_size
        type(c_ptr) :: log, log_user
        integer(c_int32_t) :: format
    end type model_options

    type, bind(c) :: session_options
        integer(c_size_t) :: struct_size
        integer(c_int64_t) :: seed, trajectory, first_member, num_members, num_frames
        integer(c_int32_t) :: threads, shifts
        real(c_double) :: temperature
        type(c_ptr) :: isa
    end type session_options

    type, bind(c) :: description
        integer(c_size_t) :: struct_size
        type(c_ptr) :: name, weights_sha256
        integer(c_int64_t) :: grid, field_channels, num_frames
        real(c_double) :: frame_interval, length
        integer(c_int64_t) :: num_tokens, token_channels, shifts
        real(c_double) :: temperature
        integer(c_int64_t) :: dims, shape(3)
        real(c_double) :: lengths(3)
        integer(c_int32_t) :: periodic(3), scattered, format
    end type description

    type, bind(c) :: observations
        integer(c_size_t) :: struct_size
        type(c_ptr) :: points, values, counts
        integer(c_int64_t) :: num_frames
        type(c_ptr) :: errors
        integer(c_int64_t) :: num_errors
    end type observations

    interface
        integer(c_int32_t) function c_model_open(folder, options, model) bind(c, name="enma_model_open")
            import :: c_int32_t, c_char, c_ptr, model_options
            character(kind=c_char), intent(in) :: folder(*)
            type(model_options), intent(in) :: options
            type(c_ptr), intent(out) :: model
        end function c_model_open

        integer(c_int32_t) function c_model_info(model, found) bind(c, name="enma_model_info")
            import :: c_int32_t, c_ptr, description
            type(c_ptr), value :: model
            type(description), intent(inout) :: found
        end function c_model_info

        integer(c_int32_t) function c_model_close(model) bind(c, name="enma_model_close")
            import :: c_int32_t, c_ptr
            type(c_ptr), value :: model
        end function c_model_close

        integer(c_int32_t) function c_session_new(model, options, session) bind(c, name="enma_session_new")
            import :: c_int32_t, c_ptr, session_options
            type(c_ptr), value :: model
            type(session_options), intent(in) :: options
            type(c_ptr), intent(out) :: session
        end function c_session_new

        integer(c_int32_t) function c_session_free(session) bind(c, name="enma_session_free")
            import :: c_int32_t, c_ptr
            type(c_ptr), value :: session
        end function c_session_free

        integer(c_int32_t) function c_known(session, name, values, context_values) bind(c, name="enma_session_known")
            import :: c_int32_t, c_char, c_ptr
            type(c_ptr), value :: session, values, context_values
            character(kind=c_char), intent(in) :: name(*)
        end function c_known

        integer(c_int32_t) function c_observe(session, history, context) bind(c, name="enma_session_observe")
            import :: c_int32_t, c_ptr
            type(c_ptr), value :: session, history, context
        end function c_observe

        integer(c_int32_t) function c_observe_points(session, history, context) bind(c, name="enma_session_observe_points")
            import :: c_int32_t, c_ptr
            type(c_ptr), value :: session, history, context
        end function c_observe_points

        integer(c_int32_t) function c_step(session, frame) bind(c, name="enma_session_step")
            import :: c_int32_t, c_ptr
            type(c_ptr), value :: session, frame
        end function c_step

        integer(c_int32_t) function c_forecast(session, frames) bind(c, name="enma_session_forecast")
            import :: c_int32_t, c_ptr
            type(c_ptr), value :: session, frames
        end function c_forecast

        integer(c_int32_t) function c_stop(session, members, count) bind(c, name="enma_session_stop")
            import :: c_int32_t, c_int8_t, c_ptr, c_size_t
            type(c_ptr), value :: session
            integer(c_int8_t), intent(in) :: members(*)
            integer(c_size_t), value :: count
        end function c_stop

        integer(c_int32_t) function c_progress(session, done, total) bind(c, name="enma_session_progress")
            import :: c_int32_t, c_int64_t, c_ptr
            type(c_ptr), value :: session
            integer(c_int64_t), intent(out) :: done, total
        end function c_progress

        integer(c_int32_t) function c_save(session, buffer, size, needed) bind(c, name="enma_session_save")
            import :: c_int32_t, c_ptr, c_size_t
            type(c_ptr), value :: session, buffer
            integer(c_size_t), value :: size
            integer(c_size_t), intent(out) :: needed
        end function c_save

        integer(c_int32_t) function c_restore(session, buffer, size) bind(c, name="enma_session_restore")
            import :: c_int32_t, c_ptr, c_size_t
            type(c_ptr), value :: session, buffer
            integer(c_size_t), value :: size
        end function c_restore

        type(c_ptr) function c_last_error() bind(c, name="enma_last_error")
            import :: c_ptr
        end function c_last_error

        integer(c_size_t) function c_strlen(text) bind(c, name="strlen")
            import :: c_ptr, c_size_t
            type(c_ptr), value :: text
        end function c_strlen
    end interface

contains

    ! Message of the last failure of this thread; empty if there was none.
    !
    ! Errors: none.
    function enma_message() result(message)
        character(len=:), allocatable :: message
        character(kind=c_char), pointer :: text(:)
        type(c_ptr) :: found
        integer :: i
        found = c_last_error()
        call c_f_pointer(found, text, [c_strlen(found)])
        allocate (character(len=size(text)) :: message)
        do i = 1, size(text)
            message(i:i) = text(i)
        end do
    end function enma_message

    subroutine report(found, status)
        integer(c_int32_t), intent(in) :: found
        integer(int32), intent(out), optional :: status
        if (present(status)) then
            status = found
        else if (found /= ENMA_OK) then
            error stop "enma: " // enma_message()
        end if
    end subroutine report

    ! Opens a checkpoint folder, verified against the SHA-256 of its manifest.
    !
    !   folder: path of the checkpoint; blanks at its end do not count
    !   model: gets the model and its description
    !   format: of the weights while sampling, ENMA_FP32 (default) or ENMA_BF16
    !
    ! Errors: those of enma_model_open.
    subroutine enma_open(folder, model, status, format)
        character(len=*), intent(in) :: folder
        type(enma_model), intent(out) :: model
        integer(int32), intent(out), optional :: status
        integer(int32), intent(in), optional :: format
        type(description) :: about
        type(model_options) :: options
        integer(c_int32_t) :: found
        options = model_options(c_sizeof(options), c_null_ptr, c_null_ptr, ENMA_FP32)
        if (present(format)) options%format = format
        found = c_model_open(trim(folder) // c_null_char, options, model%handle)
        if (found == ENMA_OK) then
            about%struct_size = c_sizeof(about)
            found = c_model_info(model%handle, about)
            model%grid = about%grid
            model%dims = int(about%dims)
            model%shape = about%shape
            model%channels = about%field_channels
            model%num_frames = about%num_frames
            model%frame_interval = about%frame_interval
            model%length = about%length
            model%scattered = about%scattered /= 0
        end if
        call report(found, status)
    end subroutine enma_open

    ! Closes a model. Its sessions go on, for they keep what they need.
    !
    !   model: an open one
    !
    ! Errors: those of enma_model_close.
    subroutine enma_close(model, status)
        type(enma_model), intent(inout) :: model
        integer(int32), intent(out), optional :: status
        call report(c_model_close(model%handle), status)
        model%handle = c_null_ptr
    end subroutine enma_close

    ! Makes a session: the members first_member, ..., first_member + num_members - 1 of a trajectory.
    !
    !   model: an open one
    !   session: gets the session
    !   num_members: at least 1, sampled together; memory grows with them
    !   seed: of the noise; 0 by default
    !   trajectory: number of the trajectory, part of the key of its noise; 0 by default
    !   first_member: number of the first member; 0 by default
    !   num_frames: to forecast; up to the length of training by default
    !   threads: at most, the calling one included; 1 by default
    !   shifts: places from which members see the field, 1 for none; the model's own by default
    !   temperature: of the noise; the model's own by default
    !
    ! Errors: those of enma_session_new.
    subroutine enma_new_session(model, session, num_members, seed, trajectory, first_member, num_frames, threads, &
                                shifts, temperature, status)
        type(enma_model), intent(in) :: model
        type(enma_session), intent(out) :: session
        integer(int64), intent(in) :: num_members
        integer(int64), intent(in), optional :: seed, trajectory, first_member, num_frames
        integer(int32), intent(in), optional :: threads, shifts
        real(real64), intent(in), optional :: temperature
        integer(int32), intent(out), optional :: status
        type(session_options) :: options
        options%struct_size = c_sizeof(options)
        options%seed = 0
        options%trajectory = 0
        options%first_member = 0
        options%num_members = num_members
        options%num_frames = 0
        options%threads = 1
        options%shifts = 0
        options%temperature = -1
        options%isa = c_null_ptr
        if (present(seed)) options%seed = seed
        if (present(trajectory)) options%trajectory = trajectory
        if (present(first_member)) options%first_member = first_member
        if (present(num_frames)) options%num_frames = num_frames
        if (present(threads)) options%threads = threads
        if (present(shifts)) options%shifts = shifts
        if (present(temperature)) options%temperature = temperature
        session%num_members = num_members
        call report(c_session_new(model%handle, options, session%handle), status)
    end subroutine enma_new_session

    ! Ends a session and frees its memory.
    !
    !   session: one of enma_new_session
    !
    ! Errors: those of enma_session_free.
    subroutine enma_free(session, status)
        type(enma_session), intent(inout) :: session
        integer(int32), intent(out), optional :: status
        call report(c_session_free(session%handle), status)
        session%handle = c_null_ptr
    end subroutine enma_free

    ! Ends members that need no more. Their places in later frames are NaN. The others keep their bits.
    !
    !   session: one that has observed
    !   mask: true where a member ends (members)
    !
    ! Errors: those of enma_session_stop.
    subroutine enma_stop(session, mask, status)
        type(enma_session), intent(in) :: session
        logical, intent(in) :: mask(:)
        integer(int32), intent(out), optional :: status
        call report(c_stop(session%handle, merge(1_c_int8_t, 0_c_int8_t, mask), size(mask, kind=c_size_t)), status)
    end subroutine enma_stop

    ! Says how far a session is.
    !
    !   session: any; before it has observed, both numbers are 0
    !   done: gets the number of frames that were given out
    !   total: gets the number of frames of the whole forecast
    !
    ! Errors: those of enma_session_progress.
    subroutine enma_progress(session, done, total, status)
        type(enma_session), intent(in) :: session
        integer(int64), intent(out) :: done, total
        integer(int32), intent(out), optional :: status
        call report(c_progress(session%handle, done, total), status)
    end subroutine enma_progress

    ! The state of a session, for a restart file.
    !
    !   session: one that has observed
    !   buffer: allocated with the bytes of the state
    !
    ! Errors: those of enma_session_save.
    subroutine enma_save(session, buffer, status)
        type(enma_session), intent(in) :: session
        integer(int8), allocatable, target, intent(out) :: buffer(:)
        integer(int32), intent(out), optional :: status
        integer(c_size_t) :: needed
        integer(c_int32_t) :: found
        integer :: refused
        found = c_save(session%handle, c_null_ptr, 0_c_size_t, needed)
        if (found == ENMA_OK) then
            allocate (buffer(needed), stat=refused)
            if (refused == 0) then
                found = c_save(session%handle, c_loc(buffer), size(buffer, kind=c_size_t), needed)
            else
                if (.not. present(status)) error stop "enma: no memory for a saved session"
                found = ENMA_NO_MEMORY
            end if
        end if
        call report(found, status)
    end subroutine enma_save

    ! Continues a saved session, in one with the same model and options; threads may differ.
    !
    !   session: takes the state
    !   buffer: what enma_save gave
    !
    ! Errors: those of enma_session_restore.
    subroutine enma_restore(session, buffer, status)
        type(enma_session), intent(in) :: session
        integer(int8), target, contiguous, intent(in) :: buffer(:)
        integer(int32), intent(out), optional :: status
        call report(c_restore(session%handle, c_loc(buffer), size(buffer, kind=c_size_t)), status)
    end subroutine enma_restore

    function array32(values) result(found)
        real(real32), target, contiguous, intent(in), optional :: values(..)
        type(array) :: found
        if (present(values)) found = array(c_loc(values), 32, rank(values), reversed(shape(values)))
    end function array32

    function array64(values) result(found)
        real(real64), target, contiguous, intent(in), optional :: values(..)
        type(array) :: found
        if (present(values)) found = array(c_loc(values), 64, rank(values), reversed(shape(values)))
    end function array64

    ! C's order of the axes, and zeros.
    pure function reversed(sizes) result(out)
        integer, intent(in) :: sizes(:)
        integer(c_int64_t) :: out(MOST_AXES)
        out = 0
        out(:size(sizes)) = int(sizes(size(sizes):1:-1), c_int64_t)
    end function reversed

    function tensor_of(values) result(t)
        type(array), target, intent(in) :: values
        type(tensor) :: t
        t = tensor(values%data, 1_c_int32_t, 0_c_int32_t, int(values%axes, c_int32_t), 2_c_int8_t, &
                   int(values%bits, c_int8_t), 1_c_int16_t, c_loc(values%sizes), c_null_ptr, 0_c_int64_t)
    end function tensor_of

    ! NULL for the tensor of an array that is absent.
    type(c_ptr) function address(t)
        type(tensor), target, intent(in) :: t
        address = c_null_ptr
        if (t%ndim /= ABSENT) address = c_loc(t)
    end function address

    subroutine known_arrays(session, name, values, context_values, status)
        type(enma_session), intent(in) :: session
        character(len=*), intent(in) :: name
        type(array), target, intent(in) :: values, context_values
        integer(int32), intent(out), optional :: status
        type(tensor), target :: given, other
        given = tensor_of(values)
        other = tensor_of(context_values)
        call report(c_known(session%handle, trim(name) // c_null_char, address(given), address(other)), status)
    end subroutine known_arrays

    subroutine known_real32(session, name, values, context_values, status)
        type(enma_session), intent(in) :: session
        character(len=*), intent(in) :: name
        real(real32), target, contiguous, intent(in) :: values(..)
        real(real32), target, contiguous, intent(in), optional :: context_values(..)
        integer(int32), intent(out), optional :: status
        call known_arrays(session, name, array32(values), array32(context_values), status)
    end subroutine known_real32

    subroutine known_real64(session, name, values, context_values, status)
        type(enma_session), intent(in) :: session
        character(len=*), intent(in) :: name
        real(real64), target, contiguous, intent(in) :: values(..)
        real(real64), target, contiguous, intent(in), optional :: context_values(..)
        integer(int32), intent(out), optional :: status
        call known_arrays(session, name, array64(values), array64(context_values), status)
    end subroutine known_real64

    subroutine observe_arrays(session, history, context, status)
        type(enma_session), intent(in) :: session
        type(array), target, intent(in) :: history, context
        integer(int32), intent(out), optional :: status
        type(tensor), target :: seen, other
        seen = tensor_of(history)
        other = tensor_of(context)
        call report(c_observe(session%handle, address(seen), address(other)), status)
    end subroutine observe_arrays

    subroutine observe_real32(session, history, context, status)
        type(enma_session), intent(in) :: session
        real(real32), target, contiguous, intent(in) :: history(..)
        real(real32), target, contiguous, intent(in), optional :: context(..)
        integer(int32), intent(out), optional :: status
        call observe_arrays(session, array32(history), array32(context), status)
    end subroutine observe_real32

    subroutine observe_real64(session, history, context, status)
        type(enma_session), intent(in) :: session
        real(real64), target, contiguous, intent(in) :: history(..)
        real(real64), target, contiguous, intent(in), optional :: context(..)
        integer(int32), intent(out), optional :: status
        call observe_arrays(session, array64(history), array64(context), status)
    end subroutine observe_real64

    function observations_of(points, values, rows, deviations) result(seen)
        type(tensor), target, intent(in) :: points, values
        integer(c_int64_t), allocatable, target, intent(in) :: rows(:)
        real(c_double), allocatable, target, intent(in) :: deviations(:)
        type(observations) :: seen
        seen = observations(c_sizeof(seen), address(points), address(values), c_null_ptr, 0_c_int64_t, c_null_ptr, &
                            0_c_int64_t)
        if (allocated(deviations)) then
            seen%errors = c_loc(deviations)
            seen%num_errors = size(deviations, kind=c_int64_t)
        end if
        if (allocated(rows)) then
            seen%counts = c_loc(rows)
            seen%num_frames = size(rows, kind=c_int64_t)
        end if
    end function observations_of

    ! Points and values of a history, then those of a context.
    subroutine observe_rows(session, arrays, counts, context_counts, status, errors)
        type(enma_session), intent(in) :: session
        type(array), target, intent(in) :: arrays(4)
        integer(int64), intent(in), optional :: counts(:), context_counts(:)
        real(real64), intent(in), optional :: errors(:)
        integer(int32), intent(out), optional :: status
        type(tensor), target :: tensors(4)
        type(observations), target :: seen, other
        integer(c_int64_t), allocatable, target :: rows(:), other_rows(:)
        real(c_double), allocatable, target :: deviations(:)
        type(c_ptr) :: context
        integer :: i
        do i = 1, 4
            tensors(i) = tensor_of(arrays(i))
        end do
        if (present(counts)) rows = counts
        if (present(context_counts)) other_rows = context_counts
        if (present(errors)) deviations = errors
        seen = observations_of(tensors(1), tensors(2), rows, deviations)
        other = observations_of(tensors(3), tensors(4), other_rows, deviations)
        context = c_null_ptr
        if (any(arrays(3:)%axes /= ABSENT)) context = c_loc(other)
        call report(c_observe_points(session%handle, c_loc(seen), context), status)
    end subroutine observe_rows

    subroutine observe_points_real32(session, points, values, counts, context_points, context_values, context_counts, &
                                     status, errors)
        type(enma_session), intent(in) :: session
        real(real32), target, contiguous, intent(in) :: points(:, :), values(..)
        real(real32), target, contiguous, intent(in), optional :: context_points(:, :), context_values(..)
        integer(int64), intent(in), optional :: counts(:), context_counts(:)
        real(real64), intent(in), optional :: errors(:)
        integer(int32), intent(out), optional :: status
        type(array) :: context(2)
        if (present(context_points)) context(1) = array32(context_points)
        if (present(context_values)) context(2) = array32(context_values)
        call observe_rows(session, [array32(points), array32(values), context], counts, context_counts, status, errors)
    end subroutine observe_points_real32

    subroutine observe_points_real64(session, points, values, counts, context_points, context_values, context_counts, &
                                     status, errors)
        type(enma_session), intent(in) :: session
        real(real64), target, contiguous, intent(in) :: points(:, :), values(..)
        real(real64), target, contiguous, intent(in), optional :: context_points(:, :), context_values(..)
        integer(int64), intent(in), optional :: counts(:), context_counts(:)
        real(real64), intent(in), optional :: errors(:)
        integer(int32), intent(out), optional :: status
        type(array) :: context(2)
        if (present(context_points)) context(1) = array64(context_points)
        if (present(context_values)) context(2) = array64(context_values)
        call observe_rows(session, [array64(points), array64(values), context], counts, context_counts, status, errors)
    end subroutine observe_points_real64

    subroutine step_into(session, frame, status)
        type(enma_session), intent(in) :: session
        type(array), target, intent(in) :: frame
        integer(int32), intent(out), optional :: status
        type(tensor), target :: out
        out = tensor_of(frame)
        call report(c_step(session%handle, c_loc(out)), status)
    end subroutine step_into

    subroutine step_real32(session, frame, status)
        type(enma_session), intent(in) :: session
        real(real32), target, contiguous, intent(inout) :: frame(..)
        integer(int32), intent(out), optional :: status
        call step_into(session, array32(frame), status)
    end subroutine step_real32

    subroutine step_real64(session, frame, status)
        type(enma_session), intent(in) :: session
        real(real64), target, contiguous, intent(inout) :: frame(..)
        integer(int32), intent(out), optional :: status
        call step_into(session, array64(frame), status)
    end subroutine step_real64

    subroutine forecast_into(session, frames, status)
        type(enma_session), intent(in) :: session
        type(array), target, intent(in) :: frames
        integer(int32), intent(out), optional :: status
        type(tensor), target :: out
        out = tensor_of(frames)
        call report(c_forecast(session%handle, c_loc(out)), status)
    end subroutine forecast_into

    subroutine forecast_real32(session, frames, status)
        type(enma_session), intent(in) :: session
        real(real32), target, contiguous, intent(inout) :: frames(..)
        integer(int32), intent(out), optional :: status
        call forecast_into(session, array32(frames), status)
    end subroutine forecast_real32

    subroutine forecast_real64(session, frames, status)
        type(enma_session), intent(in) :: session
        real(real64), target, contiguous, intent(inout) :: frames(..)
        integer(int32), intent(out), optional :: status
        call forecast_into(session, array64(frames), status)
    end subroutine forecast_real64

end module enma
