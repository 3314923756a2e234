! A field model on a plane from Fortran, from two frames with a context, and with known inputs where it is told some.
!
!     known CHECKPOINT GIVEN OUT told|fields     GIVEN are the frames, and the known inputs of both trajectories
program known
    use, intrinsic :: iso_fortran_env, only: int32, int64, real32, real64
    use enma
    implicit none
    type :: inputs
        real(real32) :: nu
        real(real32), allocatable :: wind(:), depth(:, :), heat(:, :, :)
    end type inputs
    type(enma_model) :: model
    type(enma_session) :: session
    type(inputs) :: own, other
    real(real32), allocatable :: history(:, :, :, :), context(:, :, :, :), frames(:, :, :, :, :)
    integer(int32) :: status
    integer(int64) :: done, total
    integer :: file
    character(len=1000) :: argument

    call get_command_argument(1, argument)
    call enma_open(argument, model)
    call enma_new_session(model, session, 2_int64)
    allocate (history(model%channels, model%shape(2), model%shape(1), 2))
    allocate (context(model%channels, model%shape(2), model%shape(1), model%num_frames))
    call get_command_argument(2, argument)
    open (newunit=file, file=argument, access="stream", form="unformatted", status="old", action="read")
    read (file) history, context
    call get_command_argument(4, argument)
    if (argument == "told") then
        call read_inputs(own)
        call read_inputs(other)
        call enma_known(session, "nu", own%nu, other%nu)
        call enma_known(session, "wind", real(own%wind, real64), real(other%wind, real64))
        call enma_known(session, "depth", own%depth, other%depth)
        call enma_known(session, "heat", own%heat(:, :, :2), other%heat)
        call enma_observe(session, history, context, status)
        if (status /= ENMA_INVALID_ARGUMENT .or. index(enma_message(), "known: heat has 2 frames") == 0) &
            error stop enma_message()
        call enma_known(session, "heat", own%heat)
        call enma_known(session, "salt", 1.0_real64, status=status)
        if (status /= ENMA_INVALID_ARGUMENT .or. index(enma_message(), "not told salt") == 0) error stop enma_message()
    end if
    close (file)
    call enma_observe(session, history, context)
    call enma_progress(session, done, total)
    allocate (frames(model%channels, model%shape(2), model%shape(1), total, 2))
    call enma_forecast(session, frames)
    call get_command_argument(3, argument)
    open (newunit=file, file=argument, access="stream", form="unformatted", status="replace", action="write")
    write (file) frames
    close (file)
    call enma_free(session)
    call enma_close(model)

contains

    subroutine read_inputs(to)
        type(inputs), intent(out) :: to
        allocate (to%wind(model%num_frames), to%depth(model%shape(2), model%shape(1)))
        allocate (to%heat(model%shape(2), model%shape(1), model%num_frames))
        read (file) to%nu, to%wind, to%depth, to%heat
    end subroutine read_inputs
end program known
