! Forecasts on a plane from scattered points in Fortran: points that frames share, with a context, and points of each
! frame, in both kinds of real.
!
!     points CHECKPOINT POINTS VALUES P OUT     POINTS are P, VALUES those of three frames
program points
    use, intrinsic :: iso_fortran_env, only: int32, int64, real32, real64
    use enma
    implicit none
    type(enma_model) :: model
    type(enma_session) :: session
    real(real32), allocatable :: places(:, :), values(:, :, :), frames(:, :, :, :, :)
    integer(int32) :: status
    integer(int64) :: total, done
    integer :: count, file
    character(len=1000) :: argument

    call get_command_argument(1, argument)
    call enma_open(argument, model)
    if (.not. model%scattered) error stop "the model takes no points"
    call get_command_argument(4, argument)
    read (argument, *) count
    allocate (places(model%dims, count), values(model%channels, count, 3))
    call get_command_argument(2, argument)
    open (newunit=file, file=argument, access="stream", form="unformatted", status="old", action="read")
    read (file) places
    close (file)
    call get_command_argument(3, argument)
    open (newunit=file, file=argument, access="stream", form="unformatted", status="old", action="read")
    read (file) values
    close (file)
    call get_command_argument(5, argument)
    open (newunit=file, file=argument, access="stream", form="unformatted", status="replace", action="write")

    call enma_new_session(model, session, 2_int64)
    call enma_observe_points(session, places(:1, :), values, status=status)
    if (status /= ENMA_INVALID_ARGUMENT .or. index(enma_message(), "history.points has shape") == 0) &
        error stop enma_message()
    call enma_observe_points(session, places, values)
    call enma_progress(session, done, total)
    allocate (frames(model%channels, model%shape(2), model%shape(1), total, 2))
    call enma_forecast(session, frames)
    write (file) frames
    ! The first two frames with fewer points, of another kind.
    call enma_observe_points(session, real(reshape([places(:, :3), places(:, :4), places], [model%dims, 7 + count]), real64), &
                             real(reshape([values(:, :3, 1), values(:, :4, 2), values(:, :, 3)], &
                                          [int(model%channels), 7 + count]), real64), &
                             counts=[3_int64, 4_int64, int(count, int64)])
    call enma_forecast(session, frames)
    write (file) frames
    call enma_observe_points(session, places, values, context_points=places(:, :5), context_values=values(:, :5, :))
    call enma_forecast(session, frames)
    write (file) frames
    ! A model with an interpolation takes no errors of values.
    call enma_observe_points(session, places, values, errors=[0.25_real64], status=status)
    if (status == ENMA_OK) then
        call enma_forecast(session, frames)
        write (file) frames
    else if (index(enma_message(), "history.errors: are those of") == 0) then
        error stop enma_message()
    end if
    call enma_observe_points(session, places, values, context_points=places(:, :2), &
                             context_values=reshape(values(:, :2, :), [int(model%channels), 6]), &
                             context_counts=[2_int64, 2_int64, 2_int64], status=status)
    if (status /= ENMA_INVALID_ARGUMENT .or. index(enma_message(), "context.points has shape") == 0) &
        error stop enma_message()
    call enma_observe_points(session, places, values, context_points=places, status=status)
    if (status /= ENMA_INVALID_ARGUMENT .or. index(enma_message(), "context.values is NULL") == 0) &
        error stop enma_message()
    close (file)
    call enma_free(session)
    call enma_close(model)
end program points
