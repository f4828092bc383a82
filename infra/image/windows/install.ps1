# Makes a Windows Server a runner image (preview): run it as administrator on the VM from which the image is captured, beside
# start.ps1, with git and Python 3.10 or newer already there; then sysprep (see README.md, one folder up).
#Requires -RunAsAdministrator
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$python = 'C:\Python\python.exe'
if (-not (Test-Path $python)) { throw "the agent needs $python, Python 3.10 or newer, installed for all users" }
& $python -c 'import sys; sys.exit(sys.version_info < (3, 10))'
if ($LASTEXITCODE -ne 0) { throw "$python is older than 3.10" }

$folder = 'C:\Program Files\runnerpool'
New-Item -ItemType Directory -Force $folder | Out-Null
Copy-Item -Force "$PSScriptRoot\start.ps1" $folder

$action = New-ScheduledTaskAction -Execute powershell.exe `
    -Argument "-NoProfile -NonInteractive -ExecutionPolicy Bypass -File `"$folder\start.ps1`""
$settings = New-ScheduledTaskSettingsSet -ExecutionTimeLimit ([TimeSpan]::Zero) -RestartCount 99 `
    -RestartInterval (New-TimeSpan -Minutes 1)
Register-ScheduledTask -Force -TaskName runnerpool -User SYSTEM -RunLevel Highest -Action $action -Settings $settings `
    -Trigger (New-ScheduledTaskTrigger -AtStartup) | Out-Null
